"""Which layer and which module a tensor belongs to, by its name and shape."""

import re
from collections.abc import Sequence

LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The linear weights of a decoder block, in the order in which they are shown."""
WHOLE = "all"
"""Stands in the place of a module for a whole layer: the sum over its linear weights."""
APART = ("embeddings", "norms", "biases", "head")
"""What belongs to no layer's sum."""


def layer_of(name: str) -> int | None:
    """The decoder block, from 0; None for embeddings, the final norm and the head."""
    found = LAYER.search(name)
    return int(found.group(1)) if found else None


def module_of(name: str) -> str:
    """The module a tensor is part of: "model.layers.3.self_attn.q_proj.weight" is "q_proj"."""
    parts = name.split(".")
    return parts[-2] if len(parts) > 1 else name


def part_of(name: str, shape: Sequence[int]) -> tuple[int | None, str]:
    """(layer, module) of a linear weight, or (None, one of APART) for everything else."""
    if name.endswith(".bias"):
        return None, "biases"
    if len(shape) < 2:
        return None, "norms"
    if (layer := layer_of(name)) is not None:
        return layer, module_of(name)
    return None, "head" if name.endswith("lm_head.weight") else "embeddings"


def in_order(modules: Sequence[str]) -> list[str]:
    """Modules as they are shown: the known ones first, in the order of a block."""
    known = [module for module in (WHOLE, *MODULES) if module in modules]
    return known + sorted(set(modules) - set(known))


def num_layers(names: Sequence[str]) -> int:
    """Number of decoder blocks among tensor names."""
    return max((layer + 1 for layer in map(layer_of, names) if layer is not None), default=0)
