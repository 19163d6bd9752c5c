"""The settings of one run: frozen pydantic models that refuse unknown keys. `settings` reads and explains them."""

from pathlib import PurePath
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from workbench.config_cluster import RayConfig
from workbench.config_training import DataConfig, LoraConfig, SftConfig
from workbench.redact import refuse_secrets
from workbench.section import Section, as_list

__all__ = [
    "AnalyzeConfig", "DataConfig", "EngineConfig", "EvaluateConfig", "LoraConfig", "MergeConfig", "MonitorConfig",
    "PromptConfig", "RayConfig", "RunConfig", "SampleConfig", "Section", "SftConfig", "TeacherConfig", "task_name",
]  # fmt: skip

Method = Literal["vanilla", "mixture", "accumulation", "imm"]


class SampleConfig(Section):
    """How solutions to the train task are sampled."""

    temperatures: Annotated[
        tuple[Annotated[float, Field(ge=0, le=5)], ...], BeforeValidator(as_list), Field(min_length=1)
    ] = (0.2, 0.4, 0.6)
    """Sampling temperatures; every question is answered at each (paper: 0.2, 0.4, 0.6)."""
    num_samples: int = Field(1, ge=1)
    """Solutions per question and temperature (M; not in the paper)."""
    few_shot: int = Field(10, ge=0)
    """Worked examples from the train split before each question; 0 asks without examples."""
    examples: Annotated[tuple[str, ...], BeforeValidator(as_list)] = ()
    """The worked examples chosen by hand, as ids of train questions ("train-0", ...); empty draws them by seed."""
    max_new_tokens: int = Field(512, ge=1)
    """Longest solution, in tokens."""

    @model_validator(mode="after")
    def _shows_the_chosen(self) -> "SampleConfig":
        if self.examples and len(self.examples) != self.few_shot:
            raise ValueError(
                f"examples names {len(self.examples)} questions and few_shot is {self.few_shot}; they must agree"
            )
        return self


class PromptConfig(Section):
    """How questions are put to the model, in sampling, fine-tuning and evaluation alike."""

    format: Literal["plain", "chat"] = "plain"
    """plain: "Question: ... Answer:"; chat: the model's own chat template, for instruct models."""
    system: str = ""
    """System message of the chat format; empty leaves it to the template."""
    stop: Annotated[tuple[str, ...], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)] = (
        "\nQuestion:",
    )
    """Texts at which an answer ends: a model that goes on with a question of its own has answered."""

    @model_validator(mode="after")
    def _is_used(self) -> "PromptConfig":
        if self.system and self.format == "plain":
            raise ValueError(f"system is for the chat format; with plain it must be empty, got {self.system!r}")
        if "" in self.stop:
            raise ValueError("stop holds an empty text, at which every answer would end")
        return self


class MonitorConfig(Section):
    """The collapse monitor: when solutions grow alike, the run raises an alert."""

    min_distinct: float = Field(0.7, ge=0, le=1)
    """Alert where the distinct solutions per question fall below this share of the first iteration's."""
    min_entropy: float = Field(0.5, ge=0, le=1)
    """Alert where the entropy of the answers falls below this share of the first iteration's."""
    max_self_bleu: float = Field(90.0, ge=0, le=100)
    """Alert where solutions to one question are this alike (self-BLEU, 0 to 100), and were not at first."""
    max_length_change: float = Field(2.0, gt=1)
    """Alert where solutions are this many times longer or shorter than in the first iteration."""


class TeacherConfig(Section):
    """Distillation (paper, section 5.4): another model samples the solutions, the run's model trains on them."""

    model: str | None = None
    """The teacher: a directory, a hub name, or with `url` the server's name of it; null: the model samples itself."""
    url: str | None = None
    """OpenAI-compatible server that runs it, as in http://host:8000/v1; null runs it here. The key, where one is
    needed, comes from the environment variable OPENAI_API_KEY alone."""
    format: Literal["plain", "chat"] = "chat"
    """How it is asked: its chat format, or the plain text."""
    concurrency: int = Field(32, ge=1, le=1024)
    """Requests to the server under way at once."""
    timeout_s: float = Field(300.0, gt=0)
    """Longest wait for one answer of the server, in seconds."""
    retries: int = Field(8, ge=0)
    """Tries after the first, with growing pauses, for a server that is busy or out of reach."""
    trust_remote_code: bool = False
    """As the run's own setting of that name, for the teacher's model where it is run here."""

    @model_validator(mode="after")
    def _is_whole(self) -> "TeacherConfig":
        if self.url and not self.model:
            raise ValueError("teacher.url needs teacher.model, the name under which the server knows the model")
        if self.url and not self.url.startswith(("http://", "https://")):
            raise ValueError(f"teacher.url must begin with http:// or https://, got {self.url!r}")
        if self.url and "@" in self.url.split("//", 1)[1].split("/", 1)[0]:
            raise ValueError("teacher.url must hold no name or password; put the key into OPENAI_API_KEY")
        if self.url and ("?" in self.url or "#" in self.url):
            raise ValueError("teacher.url must end before its '?' or '#'; put the key into OPENAI_API_KEY")
        return self


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
    points: Annotated[tuple[Annotated[float, Field(ge=0, le=1)], ...], BeforeValidator(as_list)] = ()
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
    num_samples: int = Field(0, ge=0, le=1024)
    """Sampled answers per question for pass@k (M); 0 measures greedy accuracy alone."""
    temperature: float = Field(0.6, gt=0, le=5)
    """Temperature of the sampled answers (the paper does not state its own)."""
    sampled_questions: int | None = Field(None, ge=1)
    """Questions per task that are sampled for pass@k, the first ones; null takes all that are asked greedily."""
    sampled_tasks: Literal["id", "all"] = "id"
    """Tasks that are sampled for pass@k: the ID test split, or every one."""


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

    kind: Literal["auto", "transformers", "vllm"] = "auto"
    """auto takes vLLM where it is installed."""
    batch_size: int | None = Field(None, ge=1)
    """Sequences handed over together, and lost together when a phase is killed; null: 256, with vLLM 1024."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic while generating; auto takes the checkpoint's on a GPU and float32 on a CPU."""
    max_model_len: int | None = Field(None, ge=32)
    """Longest prompt and answer together, in tokens; null: the model's own, at most 8192."""
    gpu_memory: float = Field(0.9, gt=0, le=1)
    """vLLM: share of each GPU's memory."""
    tensor_parallel: int = Field(1, ge=1)
    """vLLM: GPUs over which each layer is split."""
    data_parallel: int = Field(1, ge=1)
    """Copies of the model, each a process with GPUs (or a share of the cores) of its own, that share the questions."""


class RunConfig(Section):
    """One run: base model x train task x method x seed."""

    model: str = Field(min_length=1)
    """The base model: a directory or a Hugging Face hub name."""
    start: str | None = None
    """Checkpoint that iteration 1 starts from, as a merge of another run; null starts from the base."""
    trust_remote_code: bool = False
    """Run the Python code that the model brings along (auto_map in its config.json). Whoever wrote it can then do on
    this machine whatever you can: read and change files, use keys and the network. Off, it is not run."""
    train_task: str = Field(min_length=1)
    """Task to improve on: a name, a directory with train.jsonl and test.jsonl. Its test split is ID."""
    eval_tasks: Annotated[tuple[str, ...], BeforeValidator(as_list)] = ()
    """OOD tasks: names, directories or JSON Lines files."""
    datasets: str | None = None
    """Folder holding <task>/<split>.jsonl; looked at before the hub. Null means <home>/datasets."""
    method: Method = "imm"
    """vanilla (STaR) fine-tunes on from the last SFT checkpoint, mixture and accumulation do so on some or all of
    the earlier kept solutions too; imm merges each checkpoint back first."""
    group: str | None = Field(None, pattern=r"^[\w.-]{1,60}$")
    """A comparison this run belongs to; its runs share what they have in common, as the base's samples."""
    stop_if_worse: bool = False
    """End the run after iteration 1 where SFT is below the base in domain (paper, appendix D)."""
    iterations: int = Field(3, ge=1, le=100)
    """Number of sample, fine-tune, merge, evaluate iterations (T)."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Fixes the questions, samples, data order and merge masks."""
    num_questions: int | None = Field(None, ge=1)
    """Train questions, drawn from the train split by seed; null takes all."""
    keep: Literal["all", "needed"] = "all"
    """needed: the weights of a merged checkpoint are removed once the next iteration is done with them, and made
    again, the same byte for byte, by whoever needs them later. The last merge stays, and what cannot be made again."""
    threads: int | None = Field(None, ge=1)
    """CPU threads of each phase; null takes all cores, and from three on leaves one to the screen."""
    gpus: int | None = Field(None, ge=1)
    """GPUs of this run, which others leave to it; null takes all. On a machine without any it has no meaning."""
    on: Literal["machine", "ray"] = "machine"
    """This machine, or a Ray cluster: the same run with the same numbers."""
    ray: RayConfig = RayConfig()
    prompt: PromptConfig = PromptConfig()
    sample: SampleConfig = SampleConfig()
    teacher: TeacherConfig = TeacherConfig()
    monitor: MonitorConfig = MonitorConfig()
    data: DataConfig = DataConfig()
    sft: SftConfig = SftConfig()
    merge: MergeConfig = MergeConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    analyze: AnalyzeConfig = AnalyzeConfig()
    engine: EngineConfig = EngineConfig()

    @model_validator(mode="before")
    @classmethod
    def _holds_no_secret(cls, settings: Any) -> Any:
        refuse_secrets(settings)
        return settings

    @model_validator(mode="after")
    def _tasks_differ(self) -> "RunConfig":
        named: dict[str, str] = {}
        for task in (self.train_task, *self.eval_tasks):
            if task == self.train_task and named:
                raise ValueError(
                    f"eval_tasks must not name the train task {task!r}; its test split is always evaluated"
                )
            name = task_name(task)
            if name in named:
                raise ValueError(
                    f"two tasks are called {name!r}: {named[name]} and {task}; rename one, or leave it out"
                )
            named[name] = task
        return self


def task_name(task: str) -> str:
    """What a task is called: its name, or that of its file or directory without .toml or .jsonl."""
    path = PurePath(task)
    return path.stem if path.suffix in (".toml", ".jsonl", ".json") else path.name
