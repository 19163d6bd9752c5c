"""Text generation behind one small protocol."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from workbench.config import EngineConfig

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Request:
    """One text to generate. `seed` fixes the sample; temperature 0 is greedy."""

    prompt: str
    temperature: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class Generation:
    """What came back: the text without its stop string, and its length in tokens."""

    text: str
    num_tokens: int
    finished: bool
    """False: cut off at the longest length allowed."""


class Engine(Protocol):
    """Something that continues prompts."""

    def generate(
        self, requests: Sequence[Request], *, max_new_tokens: int, stop: Sequence[str] = ()
    ) -> list[Generation]:
        """Continue each prompt; the answers depend on the list of requests, not on earlier calls."""

    def load(self, checkpoint: Path) -> None:
        """Put another checkpoint of the same architecture in place of the current one."""

    def load_tensors(self, tensors: Iterable[tuple[str, "Tensor"]]) -> None:
        """Put weights of the same architecture in place, tensor by tensor, without a file in between."""


def open_engine(checkpoint: Path, config: EngineConfig, threads: int) -> Engine:
    """The engine that the config names, with a checkpoint loaded."""
    from workbench.engines.transformers import TransformersEngine

    return TransformersEngine(checkpoint, config.dtype, threads)
