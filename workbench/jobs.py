"""The complete input of each phase, written by the runner as `job.json` and read by the phase.

Model paths are local directories. Nothing here imports torch: the runner and the screen may use it.
"""

from typing import Literal

from workbench.config import AnalyzeConfig, EngineConfig, EvaluateConfig, MergeConfig, SampleConfig, Section, SftConfig

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
    train_task: TaskSource
    num_questions: int | None
    iteration: int
    seed: int
    sample: SampleConfig
    engine: EngineConfig
    threads: int


class SftJob(Section):
    """Fine-tune `start` on the kept solutions of one or more sample phases."""

    start: Checkpoint
    solutions: tuple[str, ...]
    iteration: int
    seed: int
    sft: SftConfig
    threads: int


class AnalyzeJob(Section):
    """Importance of `start`'s layers, and weight change of each checkpoint from `base` and `start`."""

    base: Checkpoint
    start: Checkpoint
    checkpoints: tuple[Checkpoint, ...]
    reasoning: TaskSource | None = None
    solutions: tuple[str, ...] = ()
    """Sampled solutions, taken where the reasoning task has no worked ones."""
    text: str | None = None
    base_importance: str | None = None
    """Directory where the importance of `base` was measured, where it is not `start`."""
    analyze: AnalyzeConfig
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


class EvaluateJob(Section):
    """Evaluate checkpoints on the ID test split and the OOD tasks."""

    checkpoints: tuple[Checkpoint, ...]
    id_task: TaskSource
    ood_tasks: tuple[TaskSource, ...]
    iteration: int
    seed: int
    evaluate: EvaluateConfig
    engine: EngineConfig
    threads: int
