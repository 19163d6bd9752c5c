"""Which layer and which module a tensor belongs to, by its name."""

import re

LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The linear weights of a decoder block, in the order in which they are shown."""


def layer_of(name: str) -> int | None:
    """The decoder block, from 0; None for embeddings, the final norm and the head."""
    found = LAYER.search(name)
    return int(found.group(1)) if found else None


def module_of(name: str) -> str:
    """The module a tensor is part of: "model.layers.3.self_attn.q_proj.weight" is "q_proj"."""
    parts = name.split(".")
    return parts[-2] if len(parts) > 1 else name


def num_layers(names: list[str]) -> int:
    """Number of decoder blocks among tensor names."""
    return max((layer + 1 for layer in map(layer_of, names) if layer is not None), default=0)
