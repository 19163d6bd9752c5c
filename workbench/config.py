"""The settings of one run: frozen pydantic models, TOML or JSON in, JSON out, unknown keys refused."""

import json
import shlex
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, Field, ValidationError, model_validator

PRESETS = Path(__file__).parent / "presets"
Method = Literal["vanilla", "imm"]

SHORT_NAMES = {
    "alpha": "merge.alpha",
    "drop_rate": "merge.drop_rate",
    "temperatures": "sample.temperatures",
    "num_samples": "sample.num_samples",
    "epochs": "sft.epochs",
    "learning_rate": "sft.learning_rate",
    "eval_questions": "evaluate.num_questions",
}
"""Plain names that `--set` accepts for settings that live in a section."""


class ConfigError(ValueError):
    """A setting is wrong; the message names it, its value and the allowed range."""


def _as_list(value: Any) -> Any:
    """A single value, or a comma-separated text, where a list is wanted."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return [value] if isinstance(value, int | float) else value


class Section(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """A frozen group of settings that refuses unknown keys, NaN and infinity."""


Checked = TypeVar("Checked", bound=Section)


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
    profile: Literal["uniform", "points", "inverse_change"] = "uniform"
    """alpha of each layer: the same, as `points` say, or inversely to how far the layer moved."""
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


def preset_names() -> list[str]:
    """The presets shipped with the package."""
    return sorted(path.stem for path in PRESETS.glob("*.toml"))


def load_settings(source: str | Path) -> dict[str, Any]:
    """The settings in a preset (by name), or in a TOML or JSON file.

    Raises:
        ConfigError: no such preset or file, or not valid TOML or JSON.
    """
    path = PRESETS / f"{source}.toml" if str(source) in preset_names() else Path(source)
    if not path.is_file():
        raise ConfigError(f"no preset or file {str(source)!r}; presets are: {', '.join(preset_names())}")
    try:
        text = path.read_text(encoding="utf-8")
        return json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (ValueError, OSError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error


def parse_assignments(assignments: Sequence[str]) -> dict[str, Any]:
    """`key=value` texts to settings; a value is JSON where it parses as such, else text.

    Raises:
        ConfigError: an assignment without `=`.
    """
    settings: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set wants key=value, got {assignment!r}")
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        settings[key.strip()] = value
    return settings


def build_config(settings: Mapping[str, Any], changes: Mapping[str, Any] | None = None) -> RunConfig:
    """A checked config from settings and changes under short or dotted names.

    Raises:
        ConfigError: naming every setting that is wrong.
    """
    nested = json.loads(json.dumps(settings))
    for name, value in (changes or {}).items():
        *sections, last = SHORT_NAMES.get(name, name).split(".")
        target = nested
        for section in sections:
            target = target.setdefault(section, {})
            if not isinstance(target, dict):
                raise ConfigError(f"{name} is not a setting: {section} has no parts")
        target[last] = value
    return _validated(RunConfig, nested)


def merge_config(settings: Mapping[str, Any]) -> MergeConfig:
    """The checked settings of one merge.

    Raises:
        ConfigError: naming every setting that is wrong.
    """
    return _validated(MergeConfig, settings)


def _validated(section: type[Checked], settings: Mapping[str, Any]) -> Checked:
    try:
        return section.model_validate(settings)
    except ValidationError as error:
        raise ConfigError("; ".join(_explain(section, e) for e in error.errors())) from error


def _explain(section: type[Section], error: Mapping[str, Any]) -> str:
    """One pydantic error as a sentence with the setting's name and value."""
    name = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        for part in error["loc"][:-1]:
            section = section.model_fields[part].annotation
        return f"unknown setting {name!r}; known here: {', '.join(section.model_fields)}"
    if error["type"] == "missing":
        return f"{name} is required"
    message = error["msg"].removeprefix("Value error, ")
    return f"{name}: {message}, got {error['input']!r}" if name else message


def setting(config: RunConfig, name: str) -> Any:
    """The value of a setting under its short or dotted name, as JSON would have it."""
    value: Any = config.model_dump(mode="json")
    for part in SHORT_NAMES.get(name, name).split("."):
        value = value[part]
    return value


def command(preset: str, config: RunConfig, names: Sequence[str]) -> str:
    """The `workbench run` command for a preset with those of `names` set in which the config differs."""
    shipped = build_config(load_settings(preset))
    words = ["workbench", "run", "--preset", preset]
    for name in names:
        if (value := setting(config, name)) != setting(shipped, name):
            words += ["--set", f"{name}={value if isinstance(value, str) else json.dumps(value)}"]
    return shlex.join(words)
