"""Layer-adaptive merging: one alpha per decoder block (the paper's future work)."""

from collections.abc import Sequence

import numpy as np


def along_depth(points: Sequence[float], num_layers: int) -> tuple[float, ...]:
    """Alphas drawn by hand: `points` at even distances from the first block to the last, straight lines between.

    Two points make a ramp, as many as there are layers set each one.

    Raises:
        ValueError: no points, or one outside [0, 1].
    """
    if not points or not all(0 <= point <= 1 for point in points):
        raise ValueError(f"points must be alphas in [0, 1], at least one, got {list(points)}")
    depth = np.linspace(0, 1, num_layers)
    return tuple(np.interp(depth, np.linspace(0, 1, len(points)), points).tolist())


def by_weight(alpha: float, weights: Sequence[float]) -> tuple[float, ...]:
    """Alphas in proportion to one positive number per layer, with mean `alpha` where none is cut at 1.

    By importance: layers that reason are drawn to the base most. By inverse weight change: layers that
    moved least are.

    Raises:
        ValueError: weights that are not all positive and finite.
    """
    array = np.asarray(weights, dtype=float)
    if not array.size or not np.isfinite(array).all() or (array <= 0).any():
        raise ValueError(f"a profile needs a positive number per layer, got {list(weights)}")
    return tuple(np.minimum(1.0, alpha * array / array.mean()).tolist())
