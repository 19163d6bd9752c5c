"""NaN and infinity, found where they are: what is merged from them, or to them, is no model."""

from collections.abc import Iterable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from workbench.checkpoints import Entry
from workbench.core.recipe import Recipe, chunks
from workbench.merging.adapters import as_float32


class Reader(Protocol):
    """A checkpoint, or an adapter read as if it were folded into one."""

    entries: dict[str, Entry]

    def values(self, name: str, piece: slice) -> NDArray: ...


def check_finite(readers: Iterable[Reader], name: str, place: slice) -> None:
    """Raise ValueError, naming file, tensor and model, where a part of a tensor is not finite in one of them.

    Asked once a sum over that part is not finite: sums are made anyway, so looking for this costs nothing.
    """
    for reader in readers:
        for piece in chunks(place.start, place.stop):
            if not np.isfinite(as_float32(reader.values(name, piece))).all():
                file = reader.entries[name].file
                raise ValueError(
                    f"{file.name}: {name} holds NaN or infinity in {file.parent}; its training went astray, give an "
                    "earlier checkpoint"
                )


def overflow(entry: Entry, recipe: Recipe) -> ValueError:
    """Of finite sides a merge that is not: the changes left by DARE are scaled by 1 / (1 - p)."""
    alpha = recipe.alpha_of(entry.name)
    return ValueError(
        f"{entry.name} merged with alpha {alpha:g} and drop_rate {recipe.drop_rate:g} holds numbers too large for the "
        f"base's {entry.dtype}; give a lower drop_rate, or a base in BF16 or F32"
    )
