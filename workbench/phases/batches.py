"""Fixed batches of generation work, so that a resumed phase repeats exactly what the first attempt did."""

from collections.abc import Sequence
from hashlib import sha256
from typing import Any, TypeVar

Item = TypeVar("Item")


def batches_by_length(items: Sequence[Item], prompts: Sequence[str], size: int) -> list[list[tuple[Item, str]]]:
    """Items with their prompts, longest prompt first, in batches of `size`.

    The batches depend on the whole list only: a batch is generated whole or not at all, because what
    shares a batch can change the last digits of a logit. The longest come first so that memory runs
    out at once or never.
    """
    pairs = sorted(zip(items, prompts, strict=True), key=lambda pair: len(pair[1]), reverse=True)
    return [pairs[at : at + size] for at in range(0, len(pairs), size)]


def stable_seed(*parts: Any) -> int:
    """A seed below 2^63 that depends on these parts alone, never on order of execution."""
    return int.from_bytes(sha256(":".join(map(str, parts)).encode()).digest()[:8], "big") >> 1
