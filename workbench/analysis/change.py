"""Weight change (paper Eq. 4): how far each linear weight, module and layer of a model moved. No torch.

Both checkpoints are read as streams, so no model is in memory; a LoRA adapter counts as folded in.
Eq. 4 names no norm. Frobenius: unchanged by transposing or reshaping a weight.
"""

import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np

from workbench.checkpoints import HEAD, NUMPY_TYPES, CheckpointReader
from workbench.core import kernel
from workbench.core.layers import APART, WHOLE, in_order, num_layers, part_of
from workbench.core.recipe import chunks
from workbench.mergeable import check_comparable
from workbench.merging.adapters import AdapterReader, as_float32, is_adapter
from workbench.merging.finite import check_finite

Reader = CheckpointReader | AdapterReader
AllSquares = Callable[..., list[np.ndarray]]


def open_pair(first: Path, second: Path, trained_on: Path | None = None) -> tuple[CheckpointReader, Reader]:
    """Two checkpoints of one shape; `second` may be a LoRA adapter, trained on `trained_on` (default: `first`).

    Raises:
        ValueError: a file that cannot be read, weights that are quantised, or models that do not fit each other.
    """
    left = CheckpointReader(first)
    if is_adapter(second):
        start = CheckpointReader(trained_on) if trained_on else left
        check_comparable(left, start)
        return left, AdapterReader(second, start)
    right = CheckpointReader(second)
    check_comparable(left, right)
    return left, right


def squares_here(left: Reader, right: Reader, names: Sequence[str], *, threads: int | None = None) -> list[np.ndarray]:
    """|right - left|^2 and |left|^2 of each tensor, on this machine."""
    with ThreadPoolExecutor(threads or len(os.sched_getaffinity(0))) as pool:
        return list(pool.map(lambda name: squares(left, right, name), names))


def weight_change(
    left: Reader, right: Reader, *, threads: int | None = None, all_squares: AllSquares = squares_here
) -> list[dict[str, Any]]:
    """Rows layer, module, change, norm: |right - left| and |left| (Frobenius) of each linear module.

    Module "all" is the sum over the layer's modules (Eq. 4; of several weights of one module too). Rows with
    layer None are what belongs to no layer's sum: all embeddings, norms, biases and the head, each as one
    vector. With tied embeddings there is no head. `all_squares` may be another maker of the same sums.

    Raises:
        ValueError: weights that are not finite.
    """
    names = [name for name in left.entries if not (left.description.tied and name == HEAD)]
    names = [n for n in names if {left.entries[n].dtype, right.entries[n].dtype} <= NUMPY_TYPES.keys()]  # no masks
    by_name = dict(zip(names, all_squares(left, right, names, threads=threads), strict=True))
    layers: list[dict[str, list[float]]] = [defaultdict(lambda: [0.0, 0.0]) for _ in range(num_layers(names))]
    apart: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(2))
    for name, found in by_name.items():
        layer, module = part_of(name, left.entries[name].shape)
        if layer is None:
            apart[module] += found
            continue
        for key in (WHOLE, module):
            layers[layer][key][0] += sqrt(found[0])
            layers[layer][key][1] += sqrt(found[1])
    rows = [
        {"layer": layer, "module": module, "change": sums[module][0], "norm": sums[module][1]}
        for layer, sums in enumerate(layers) for module in in_order(list(sums))
    ]  # fmt: skip
    return rows + [
        {"layer": None, "module": part, "change": sqrt(apart[part][0]), "norm": sqrt(apart[part][1])}
        for part in APART if part in apart
    ]  # fmt: skip


def squares(left: Reader, right: Reader, name: str) -> np.ndarray:
    """|right - left|^2 and |left|^2 of one tensor, in pieces."""
    total = np.zeros(2)
    for piece in chunks(0, left.entries[name].num_entries):
        pair = [reader.values(name, piece) for reader in (left, right)]
        if pair[0].dtype != pair[1].dtype:
            pair = [as_float32(values) for values in pair]
        total += kernel.difference(*pair)
    if not np.isfinite(total).all():
        check_finite((left, right), name, slice(0, left.entries[name].num_entries))
    return total
