"""The settings of one run: frozen pydantic models that refuse unknown keys. `settings` reads and explains them."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, model_validator

Method = Literal["vanilla", "imm"]


def _as_list(value: Any) -> Any:
    """A single value, or a comma-separated text, where a list is wanted."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return [value] if isinstance(value, int | float) else value


class Section(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """A frozen group of settings that refuses unknown keys, NaN and infinity."""


class SampleConfig(Section):
    """How solutions to the train task are sampled."""

    temperatures: Annotated[
        tuple[Annotated[float, Field(ge=0, le=5)], ...], BeforeValidator(_as_list), Field(min_length=1)
    ] = (0.2, 0.4, 0.6)
    """Sampling temperatures; every question is answered at each (paper: 0.2, 0.4, 0.6)."""
    num_samples: int = Field(1, ge=1)
    """Solutions per question and temperature (M; not in the paper)."""
    few_shot: int = Field(10, ge=0)
    """Worked examples from the train split before each question; 0 asks without examples."""
    max_new_tokens: int = Field(512, ge=1)
    """Longest solution, in tokens."""


class SftConfig(Section):
    """How a checkpoint is fine-tuned on the kept solutions."""

    epochs: int = Field(3, ge=1)
    """Passes over the kept solutions (paper: 3)."""
    learning_rate: float = Field(2e-5, gt=0)
    """Peak learning rate (paper: 2e-5)."""
    schedule: Literal["cosine", "linear"] = "cosine"
    """Decay of the learning rate to zero."""
    warmup_ratio: float = Field(0.03, ge=0, lt=1)
    """Share of the steps over which the learning rate rises (paper: 0.03)."""
    batch_size: int = Field(4, ge=1)
    """Solutions per forward pass (paper: 4)."""
    accumulation: int = Field(4, ge=1)
    """Forward passes per optimizer step (paper: 4)."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW weight decay."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients are scaled down to this norm."""
    max_length: int = Field(1024, ge=16)
    """Longer examples (prompt and response, in tokens) are left out and counted."""
    save_every_steps: int = Field(200, ge=1)
    """Steps between the optimizer checkpoints from which a killed phase continues."""


class MergeConfig(Section):
    """How the fine-tuned checkpoint is merged back."""

    alpha: float = Field(0.5, ge=0, le=1)
    """Weight of the base model; 1 returns the base (paper: 0.5)."""
    drop_rate: float = Field(0.2, ge=0, lt=1)
    """DARE p (not in the paper; the authors' README uses 0.2)."""
    rule: Literal["dare", "ties", "slerp"] = "dare"
    """Which changes are dropped: random ones (dare, the paper's), the smallest (ties), or none and along
    the arc (slerp); plain linear merging is dare with drop_rate 0."""
    towards: Literal["base", "start"] = "base"
    """What alpha weights: the base (the paper), or the checkpoint the iteration started from."""
    profile: Literal["uniform", "points", "importance", "inverse_change"] = "uniform"
    """alpha of each layer: the same, as `points` say, in proportion to its importance for reasoning, or inversely
    to how far it moved."""
    points: Annotated[tuple[Annotated[float, Field(ge=0, le=1)], ...], BeforeValidator(_as_list)] = ()
    """Alphas at even distances from the first layer to the last (profile points); two make a ramp."""
    modules: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
    """Factors on alpha by module, as in {"down_proj": 0.5}."""

    @model_validator(mode="after")
    def _fits(self) -> "MergeConfig":
        if (self.profile == "points") != bool(self.points):
            raise ValueError("points and profile = 'points' go together: give both or neither")
        if self.rule == "slerp" and self.drop_rate:
            raise ValueError(f"slerp drops nothing: drop_rate must be 0, got {self.drop_rate}")
        return self


class EvaluateConfig(Section):
    """How checkpoints are evaluated: greedy answers to the plain question."""

    num_questions: int | None = Field(None, ge=1)
    """Questions per task, the first ones of its test split; null takes all."""
    max_new_tokens: int = Field(512, ge=1)
    """Longest answer, in tokens."""


class AnalyzeConfig(Section):
    """How layers are analysed: importance for a reasoning set and for plain text, against weight change."""

    enabled: bool = True
    """Whether every iteration is analysed."""
    task: str | None = None
    """Task whose worked solutions are the reasoning set; null takes the train task."""
    text: str | None = None
    """Plain text to hold against it: a file or a hub text set; null takes the text that is shipped."""
    num_examples: int = Field(128, ge=2)
    """Examples of each set (not in the paper)."""
    batch_size: int = Field(8, ge=1)
    """Examples per forward and backward pass."""
    max_length: int = Field(1024, ge=16)
    """Solutions longer than this (prompt and response, in tokens) are left out, texts are cut."""
    gradients: Literal["accumulated", "per_batch"] = "accumulated"
    """accumulated over the set before the absolute value (paper, Eq. 3), or the mean of each batch's."""
    order: Literal["first", "second"] = "first"
    """first: |g W| (paper, Eq. 3); second: with the Fisher term of its Eq. 2."""
    replicates: int = Field(400, ge=20)
    """Bootstrap draws behind the intervals."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic; auto takes the checkpoint's on a GPU and float32 on a CPU."""


class EngineConfig(Section):
    """What generates text."""

    batch_size: int = Field(256, ge=1)
    """Sequences generated together."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic while generating; auto takes the checkpoint's on a GPU and float32 on a CPU."""


class RunConfig(Section):
    """One run: base model x train task x method x seed."""

    model: str = Field(min_length=1)
    """The base model: a directory or a Hugging Face hub name."""
    start: str | None = None
    """Checkpoint that iteration 1 starts from, as a merge of another run; null starts from the base."""
    train_task: str = Field(min_length=1)
    """Task to improve on: a name, a directory with train.jsonl and test.jsonl. Its test split is ID."""
    eval_tasks: Annotated[tuple[str, ...], BeforeValidator(_as_list)] = ()
    """OOD tasks: names, directories or JSON Lines files."""
    datasets: str | None = None
    """Folder holding <task>/<split>.jsonl; looked at before the hub. Null means <home>/datasets."""
    method: Method = "imm"
    """vanilla fine-tunes on from the last SFT checkpoint; imm merges each one back first."""
    iterations: int = Field(3, ge=1, le=100)
    """Number of sample, fine-tune, merge, evaluate iterations (T)."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Fixes the questions, samples, data order and merge masks."""
    num_questions: int | None = Field(None, ge=1)
    """Train questions, drawn from the train split by seed; null takes all."""
    threads: int | None = Field(None, ge=1)
    """CPU threads of each phase; null takes all cores, and from three on leaves one to the screen."""
    sample: SampleConfig = SampleConfig()
    sft: SftConfig = SftConfig()
    merge: MergeConfig = MergeConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    analyze: AnalyzeConfig = AnalyzeConfig()
    engine: EngineConfig = EngineConfig()

    @model_validator(mode="after")
    def _ood_excludes_id(self) -> "RunConfig":
        if self.train_task in self.eval_tasks:
            raise ValueError(
                f"eval_tasks must not name the train task {self.train_task!r}; its test split is always evaluated"
            )
        if len(set(self.eval_tasks)) < len(self.eval_tasks):
            raise ValueError(f"eval_tasks names a task twice: {', '.join(self.eval_tasks)}")
        return self
