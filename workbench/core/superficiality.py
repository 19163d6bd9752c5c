"""Do the layers that moved reason? The rank correlation of importance and weight change over layers, in words.

-1: the layers that matter least moved most, which the paper calls superficial; +1: those that matter most did.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import permutation_test, rankdata

LEAST_LAYERS = 5
"""With fewer layers no correlation is told apart from zero."""
PERMUTATIONS = 5040
"""All orders of seven layers; of more layers as many are drawn."""
DEPTHS = ("early", "middle", "late")


@dataclass(frozen=True)
class Index:
    """The superficiality index: Spearman's rank correlation over layers, bootstrap interval and permutation test."""

    value: float | None
    ci_low: float | None
    ci_high: float | None
    p_value: float | None
    num_layers: int

    @property
    def is_sure(self) -> bool:
        """Whether the interval leaves zero out, and chance rarely orders so few layers like this.

        The bootstrap alone is too bold for six layers: of a perfect order every resample is perfect too.
        """
        return self.ci_low is not None and (self.ci_low > 0 or self.ci_high < 0) and self.p_value < 0.05


def superficiality(importance: Sequence[float], draws: NDArray, change: Sequence[float], seed: int = 0) -> Index:
    """The index and its 95 % interval; every replicate draws examples anew, and layers anew.

    importance, change: (layers,); draws: (replicates, layers), the importance with other examples. No
    value where one of the two is equal over all layers, no interval with fewer than LEAST_LAYERS.

    Raises:
        ValueError: not the same layers.
    """
    importance, change = np.asarray(importance, float), np.asarray(change, float)
    if importance.shape != change.shape or draws.shape[1:] != change.shape:
        raise ValueError(
            f"importance is of {importance.size} layers and weight change of {change.size}; both must be of one model"
        )
    value = _spearman(importance[None], change[None])[0]
    if np.isnan(value) or change.size < LEAST_LAYERS:
        return Index(None if np.isnan(value) else float(value), None, None, None, change.size)
    places = np.random.default_rng(seed).integers(change.size, size=draws.shape)
    found = _spearman(np.take_along_axis(draws, places, 1), change[places])
    low, high = np.nanpercentile(found, [2.5, 97.5])
    test = permutation_test(
        (importance,),
        lambda rows, axis: _spearman(rows.reshape(-1, change.size), change[None]).reshape(rows.shape[:-1]),
        permutation_type="pairings",
        vectorized=True,
        n_resamples=PERMUTATIONS,
        rng=seed,
    )
    return Index(float(value), float(low), float(high), float(test.pvalue), change.size)


def _spearman(left: NDArray, right: NDArray) -> NDArray:
    """Row by row; NaN where a row is constant."""
    left, right = (rankdata(side, axis=1) - (side.shape[1] + 1) / 2 for side in (left, right))
    with np.errstate(invalid="ignore"):
        return (left * right).sum(1) / np.sqrt((left**2).sum(1) * (right**2).sum(1))


def critical_layers(values: Sequence[float]) -> list[int]:
    """The fewest layers that together hold half of the sum."""
    array = np.asarray(values, float)
    order = np.argsort(-array, kind="stable")
    enough = int(np.searchsorted(np.cumsum(array[order]), array.sum() / 2)) + 1
    return sorted(order[:enough].tolist())


def where(values: Sequence[float]) -> str:
    """In which third of the depth most of it lies, with its share: "mostly early, 58 %", or that it is all over."""
    array = np.asarray(values, float)
    thirds = np.minimum(3 * np.arange(array.size) // array.size, 2)
    shares = np.array([array[thirds == third].sum() for third in range(3)]) / (array.sum() or 1)
    most = int(shares.argmax())
    if shares[most] > 0.4:
        return f"mostly {DEPTHS[most]}, {100 * shares[most]:.0f} %"
    low, high = 100 * array.min() / (array.sum() or 1), 100 * array.max() / (array.sum() or 1)
    return f"all over the depth, {low:.0f} to {high:.0f} % a layer"


def verdict(importance: Sequence[float], change: Sequence[float], index: Index) -> str:
    """What can be said in plain words; nothing about superficial or not while the interval contains zero."""
    layers = ", ".join(map(str, critical_layers(importance)))
    moved = ", ".join(map(str, critical_layers(change)))
    seen = (
        f"Half of the importance lies in layers {layers} ({where(importance)}); half of the weight change in layers "
        f"{moved} ({where(change)})."
    )
    if index.value is None:
        return "Nothing moved, or every layer alike: there is no order of layers to compare."
    if index.ci_low is None:
        return f"{seen} With {index.num_layers} layers no correlation can be told from chance."
    numbers = f"rank correlation {index.value:+.2f}, 95 %: {index.ci_low:+.2f} to {index.ci_high:+.2f}, "
    numbers += f"p = {index.p_value:.2g}, n = {index.num_layers} layers"
    if not index.is_sure:
        return f"{seen} Whether the layers that matter are those that moved cannot be told ({numbers})."
    if index.value < 0:
        return f"{seen} Superficial: the layers that matter most moved least ({numbers})."
    return f"{seen} Not superficial: the layers that matter most moved most ({numbers})."
