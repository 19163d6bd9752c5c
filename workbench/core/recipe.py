"""The recipe of a merge: alpha, drop rate, seed and what else it depends on beside its inputs."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import Literal, get_args

from workbench.core.layers import layer_of, module_of

CHUNK = 1 << 17
"""Entries handled together: all temporaries of a chunk stay in a core's cache."""
Rule = Literal["dare", "ties", "slerp"]
Towards = Literal["base", "start"]


@dataclass(frozen=True)
class Recipe:
    """What a merge depends on beside its inputs.

    rule: "dare" is the paper's, and plain linear merging at drop_rate 0. "ties" drops the share
    `drop_rate` of the smallest changes instead of random ones and rescales nothing (Yadav et al. 2023,
    arXiv 2306.01708; with one fine-tuned model its sign election has nothing to elect). "slerp" goes
    along the arc from sft to base instead of the chord (Shoemake 1985) and drops nothing.
    towards: merged = alpha * base + ..., or, the other reading of Eq. 5-6, alpha * start + ...
    layer_alphas: one alpha per decoder block in place of `alpha`, which holds for all other tensors.
    module_factors: (module, factor) pairs; alpha is multiplied by the factor, and cut at 1.

    Raises:
        ValueError: a number outside its range, naming it.
    """

    alpha: float
    drop_rate: float
    seed: int
    rule: Rule = "dare"
    towards: Towards = "base"
    layer_alphas: tuple[float, ...] = ()
    module_factors: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        for name, alpha in [
            ("alpha", self.alpha),
            *((f"alpha of layer {n}", a) for n, a in enumerate(self.layer_alphas)),
        ]:
            if not 0 <= alpha <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {alpha}; 1 returns the {self.towards}")
        if not 0 <= self.drop_rate < 1:
            raise ValueError(f"drop_rate must be in [0, 1), got {self.drop_rate}; 0 keeps every change")
        if self.rule not in get_args(Rule) or self.towards not in get_args(Towards):
            raise ValueError(f"no rule {self.rule!r} towards {self.towards!r}; rules: {', '.join(get_args(Rule))}")
        if self.rule == "slerp" and self.drop_rate:
            raise ValueError(f"slerp drops nothing: drop_rate must be 0, got {self.drop_rate}")
        for module, factor in self.module_factors:
            if not 0 <= factor < math.inf:
                raise ValueError(f"the factor of {module} must be 0 or more, got {factor}")

    def alpha_of(self, name: str) -> float:
        """alpha for one tensor.

        Raises:
            ValueError: the tensor's layer has no alpha.
        """
        layer = layer_of(name)
        if layer is not None and self.layer_alphas and layer >= len(self.layer_alphas):
            raise ValueError(f"{name} is in layer {layer}, but alphas are given for {len(self.layer_alphas)} layers")
        alpha = self.layer_alphas[layer] if layer is not None and self.layer_alphas else self.alpha
        return min(1.0, alpha * dict(self.module_factors).get(module_of(name), 1.0))

    @property
    def threshold(self) -> int:
        """How many of the 2^32 hashes mean that an entry is dropped."""
        return drop_threshold(self.drop_rate) if self.rule == "dare" else 0

    @property
    def boost(self) -> float:
        """p / (1 - p): a kept entry is sft + boost * (sft - start), which is start + delta / (1 - p)."""
        return self.drop_rate / (1 - self.drop_rate) if self.rule == "dare" else 0.0


def chunks(begin: int, end: int) -> Iterator[slice]:
    """Consecutive pieces of a flattened tensor; none crosses a multiple of 2^32."""
    for at in range(begin, end, CHUNK):
        yield slice(at, min(at + CHUNK, end))


def drop_threshold(drop_rate: float) -> int:
    """p * 2^32, rounded: how many of the 2^32 hashes mean that an entry is dropped."""
    return min(math.floor(drop_rate * 2**32 + 0.5), 2**32 - 1)


def mask_keys(seed: int, name: str, first: int) -> tuple[int, int]:
    """The two words that key the hash of the entries from `first` on (flat index; its upper half goes in here)."""
    digest = sha256(f"{seed}:{name}".encode()).digest()
    low, high = (int.from_bytes(digest[8 * i : 8 * i + 4], "little") for i in range(2))
    return low, high ^ (((first >> 32) * 0x9E3779B1) & 0x7FFFFFFF)
