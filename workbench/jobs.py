"""The complete input of each phase, written by the runner as `job.json` and read by the phase.

Model paths are local directories. Nothing here imports torch: the runner and the screen may use it.
"""

from typing import Any, Literal

from workbench.config import (
    AnalyzeConfig,
    DataConfig,
    EngineConfig,
    EvaluateConfig,
    MergeConfig,
    MonitorConfig,
    PromptConfig,
    SampleConfig,
    Section,
    SftConfig,
    TeacherConfig,
)

Kind = Literal["base", "start", "sft", "merged", "other"]


class Checkpoint(Section):
    """A model directory and the store's key of it."""

    checkpoint_id: str
    kind: Kind
    path: str


class TaskSource(Section):
    """Where a task comes from: its name or path, and the folder looked at before the hub."""

    task: str
    datasets: str | None = None


class SampleJob(Section):
    """Sample solutions to the train questions from one checkpoint."""

    model: Checkpoint
    trust_remote_code: bool = False
    """Of this and every job: whether code that the model brings along is run."""
    train_task: TaskSource
    num_questions: int | None
    iteration: int
    seed: int
    prompt: PromptConfig = PromptConfig()
    sample: SampleConfig
    teacher: TeacherConfig = TeacherConfig()
    monitor: MonitorConfig = MonitorConfig()
    first_result: str | None = None
    """Result of the first iteration's sampling, which the collapse monitor holds this one against."""
    engine: EngineConfig
    threads: int


class SftJob(Section):
    """Fine-tune `start` on kept solutions, on the train split's own, or on both."""

    start: Checkpoint
    trust_remote_code: bool = False
    solutions: tuple[str, ...]
    """This iteration's."""
    earlier: tuple[str, ...] = ()
    """Those of the iterations before, with methods mixture and accumulation."""
    earlier_share: float = 1.0
    """How many of these are learned from again."""
    data: DataConfig = DataConfig()
    train_task: TaskSource | None = None
    """Whose worked solutions are learned from where `data.real_share` says so, to which questions."""
    num_questions: int | None = None
    sample: SampleConfig = SampleConfig()
    iteration: int
    seed: int
    prompt: PromptConfig = PromptConfig()
    sft: SftConfig
    threads: int


class AnalyzeJob(Section):
    """Importance of `start`'s layers, and weight change of each checkpoint from `base` and `start`."""

    base: Checkpoint
    start: Checkpoint
    checkpoints: tuple[Checkpoint, ...]
    trust_remote_code: bool = False
    reasoning: TaskSource | None = None
    solutions: tuple[str, ...] = ()
    """Sampled solutions, taken where the reasoning task has no worked ones."""
    text: str | None = None
    base_importance: str | None = None
    """Directory where the importance of `base` was measured, where it is not `start`."""
    analyze: AnalyzeConfig
    prompt: PromptConfig = PromptConfig()
    seed: int
    threads: int


class MergeJob(Section):
    """Merge `sft` back: alpha * base + (1 - alpha) * (start + dare(sft - start))."""

    base: Checkpoint
    start: Checkpoint
    sft: Checkpoint
    merge: MergeConfig
    seed: int
    iteration: int
    threads: int
    analyze: AnalyzeJob | None = None
    """With alpha by importance: how the start's is measured, and where it is kept for phase analyze."""
    importance: str | None = None


class Baseline(Section):
    """A checkpoint that was evaluated before, and the file with its answers."""

    checkpoint_id: str
    outcomes: str


class EvaluateJob(Section):
    """Evaluate checkpoints on the ID test split and the OOD tasks."""

    checkpoints: tuple[Checkpoint, ...]
    trust_remote_code: bool = False
    baseline: Baseline | None = None
    """In iteration 1 the base, which the go / no-go verdict holds sft against."""
    id_task: TaskSource
    ood_tasks: tuple[TaskSource, ...]
    solutions: tuple[str, ...] = ()
    """Sampled solutions, of which the kept ones are looked for in the test sets."""
    num_questions: int | None = None
    sample: SampleConfig = SampleConfig()
    """Which train questions the run draws and shows as examples: those are looked for too."""
    iteration: int
    seed: int
    prompt: PromptConfig = PromptConfig()
    evaluate: EvaluateConfig
    engine: EngineConfig
    threads: int


def model_paths(job: Section) -> set[str]:
    """The model directories that a phase reads."""
    found: set[str] = set()

    def walk(value: Any) -> None:
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            if isinstance(part, dict | list):
                walk(part)
            elif key in ("path", "model") and isinstance(part, str):
                found.add(part)

    walk(job.model_dump(mode="json"))
    return found
