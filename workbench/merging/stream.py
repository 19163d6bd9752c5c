"""Merging as a stream: base, start and sft, memory-mapped, tensor by tensor in pieces, into any number of results.

Neither a model nor a tensor is held in memory beside the results asked for. No torch: a merge starts at once.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from math import acos, sin, sqrt
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.checkpoints import HEAD, ITEM_BYTES, NUMPY_TYPES, CheckpointReader, Entry
from workbench.config import MergeConfig
from workbench.core import kernel
from workbench.core.layers import num_layers, part_of
from workbench.core.profiles import along_depth, by_weight
from workbench.core.recipe import CHUNK, Recipe, chunks, mask_keys
from workbench.mergeable import check_sides
from workbench.merging.adapters import AdapterReader, as_float32, is_adapter
from workbench.merging.finite import check_finite, overflow

PART = 8 * CHUNK
"""Entries that a thread takes at a time."""
Progress = Callable[[int, int], None]
Place = tuple[Entry, slice]
"""A part of a tensor."""


@dataclass(frozen=True)
class Models:
    """The three sides of a merge, which fit each other, and what there is to do for each tensor."""

    base: CheckpointReader
    start: CheckpointReader
    sft: CheckpointReader | AdapterReader
    merged: tuple[Entry, ...]
    """Floating-point tensors of the base, each once, the widest types first."""
    copied: tuple[Entry, ...]
    """Others (buffers of whole numbers), taken from sft as they are."""
    num_tied: int
    """Copies of tied weights, left out."""

    @property
    def sides(self) -> tuple[CheckpointReader, CheckpointReader, CheckpointReader | AdapterReader]:
        """Base, start and sft."""
        return self.base, self.start, self.sft

    def pieces(self, name: str, piece: slice) -> tuple[NDArray, NDArray, NDArray]:
        """The same piece of base, start and sft; all bfloat16 bits, or all float32."""
        found = [reader.values(name, piece) for reader in self.sides]
        if len({array.dtype for array in found}) > 1:
            found = [as_float32(array) for array in found]
        return found[0], found[1], found[2]


def open_models(base: Path, start: Path, sft: Path) -> Models:
    """The three sides, opened and checked; `sft` may be a LoRA adapter directory trained on `start`.

    Raises:
        ValueError: a file that cannot be read, weights that are quantised, or models that do not fit each other.
    """
    paths = {base, start} if is_adapter(sft) else {base, start, sft}
    readers = {path: CheckpointReader(path) for path in paths}
    check_sides(readers[base], *(reader for path, reader in readers.items() if path != base))
    tuned = AdapterReader(sft, readers[start]) if is_adapter(sft) else readers[sft]
    entries = readers[base].entries
    tied = readers[base].description.tied
    once = [entry for name, entry in entries.items() if not (tied and name == HEAD)]
    once.sort(key=lambda entry: (-ITEM_BYTES[entry.dtype], entry.name))
    merged = tuple(entry for entry in once if entry.dtype in NUMPY_TYPES)
    copied = tuple(entry for entry in once if entry.dtype not in NUMPY_TYPES)
    return Models(readers[base], readers[start], tuned, merged, copied, len(entries) - len(once))


@dataclass
class Totals:
    """What a merge's report is made of; see `kernel.SUMS` and `kernel.COUNTS`."""

    sums: NDArray = field(default_factory=lambda: np.zeros(len(kernel.SUMS)))
    counts: NDArray = field(default_factory=lambda: np.zeros(len(kernel.COUNTS), np.int64))

    def __iadd__(self, other: "Totals") -> "Totals":
        self.sums += other.sums
        self.counts += other.counts
        return self

    def named(self) -> dict[str, Any]:
        """Every sum and count by its name."""
        return dict(zip(kernel.SUMS, self.sums.tolist(), strict=True)) | dict(
            zip(kernel.COUNTS, self.counts.tolist(), strict=True)
        )


@dataclass(frozen=True)
class Part:
    """A part of one merged tensor: one flat array, in the base's type (bfloat16 as uint16), per recipe."""

    entry: Entry
    place: slice
    arrays: list[NDArray]
    totals: list[Totals]

    @property
    def is_last(self) -> bool:
        """Whether the tensor ends here."""
        return self.place.stop == self.entry.num_entries


def merged_parts(models: Models, recipes: Sequence[Recipe], *, threads: int | None = None) -> Iterator[Part]:
    """Merge by several recipes in one pass over the inputs, in the order of `models.merged`.

    The numbers do not depend on `threads`. A few parts are in memory at a time: computing waits for
    whoever takes them.
    """
    work, threads = part_merger(models, recipes), threads or len(os.sched_getaffinity(0))
    waiting: deque[Future[Part]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for place in places(models):
            waiting.append(pool.submit(work, place))
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def part_merger(models: Models, recipes: Sequence[Recipe]) -> Callable[[Place], Part]:
    """Merges one part by every recipe, wherever it is called: a part's numbers depend on nothing else."""
    plans = [_Plan(models, recipe) for recipe in recipes]
    return lambda place: _merge_part(models, plans, *place)


def merged_tensors(models: Models, recipe: Recipe, *, threads: int | None = None) -> Iterator[tuple[Entry, NDArray]]:
    """Each tensor of the merged model in memory, one after the other: for an engine, with no file in between.

    Flat arrays in the base's type; the same numbers as go to a file. Tensors of whole numbers are not among them.
    """
    parts: list[NDArray] = []
    for part in merged_parts(models, [recipe], threads=threads):
        parts.append(part.arrays[0])
        if part.is_last:
            yield part.entry, np.concatenate(parts)
            parts = []


def pair_moments(models: Models, *, threads: int | None = None) -> dict[str, NDArray]:
    """By tensor, the six sums (`kernel.MOMENTS`) from which `core.distances` has every alpha and p."""
    sums = {entry.name: np.zeros(len(kernel.MOMENTS)) for entry in models.merged}

    def work(task: Place) -> NDArray:
        entry, part = task
        found = sum(kernel.pair_moments(*models.pieces(entry.name, p)) for p in chunks(part.start, part.stop))
        if not np.isfinite(found).all():
            check_finite(models.sides, entry.name, part)
        return found

    tasks = list(places(models))
    with ThreadPoolExecutor(threads or len(os.sched_getaffinity(0))) as pool:
        for (entry, _), found in zip(tasks, pool.map(work, tasks), strict=True):
            sums[entry.name] += found
    return sums


def weight_change(models: Models, moments: Mapping[str, NDArray]) -> list[float]:
    """By layer, the sum over its linear weights of |sft - start| (Eq. 4, Frobenius), from `pair_moments`."""
    change = [0.0] * num_layers(list(moments))
    for name, sums in moments.items():
        layer, _ = part_of(name, models.base.entries[name].shape)
        if layer is not None:
            change[layer] += sqrt(sums[2])
    return change


def recipe_for(models: Models, config: MergeConfig, seed: int, importance: Sequence[float] | None = None) -> Recipe:
    """The settings of a merge with its profile worked out, one alpha per layer.

    `importance`: of the start's layers, (layers,), for the profile of that name.

    Raises:
        ValueError: alpha by importance, and none was measured.
    """
    layers: tuple[float, ...] = ()
    if config.profile == "points":
        layers = along_depth(config.points, num_layers([entry.name for entry in models.merged]))
    if config.profile == "inverse_change":
        change = weight_change(models, pair_moments(models))
        layers = by_weight(config.alpha, [1 / max(moved, 1e-12) for moved in change])
    if config.profile == "importance":
        if importance is None:
            raise ValueError(
                "alpha by importance needs the importance of the start's layers: give what "
                "`workbench layers importance START --task TASK --out DIR` made, or let the run's phase analyze end"
            )
        layers = by_weight(config.alpha, importance)
    modules = tuple(sorted(config.modules.items()))
    return Recipe(config.alpha, config.drop_rate, seed, config.rule, config.towards, layers, modules)


def places(models: Models) -> Iterator[Place]:
    """The tensors to merge, in their order, the long ones in parts."""
    for entry in models.merged:
        for at in range(0, entry.num_entries, PART):
            yield entry, slice(at, min(at + PART, entry.num_entries))


class _Plan:
    """A recipe's numbers for each tensor, with those that need a look at the weights first."""

    def __init__(self, models: Models, recipe: Recipe) -> None:
        self.recipe, self.models = recipe, models
        self.trim = _trim(models, recipe.drop_rate) if recipe.rule == "ties" else 0.0
        self.factors = {entry.name: self._factors(entry.name) for entry in models.merged}

    def _factors(self, name: str) -> tuple[float, float]:
        """(alpha, scale) of the kernel: merged = scale * tuned + alpha * (target - tuned)."""
        alpha = self.recipe.alpha_of(name)
        if self.recipe.rule != "slerp":
            return alpha, 1.0
        pieces = (self.models.pieces(name, piece) for piece in chunks(0, self.models.base.entries[name].num_entries))
        to_base = self.recipe.towards == "base"
        bb, bt, tt = sum(kernel.dots(base if to_base else start, sft) for base, start, sft in pieces)
        cosine = bt / sqrt(bb * tt) if bb * tt else 1.0
        angle = acos(max(-1.0, min(1.0, cosine)))
        if sin(angle) < 1e-4:  # the arc is its chord, to float32
            return alpha, 1.0
        to, tuned = sin(alpha * angle) / sin(angle), sin((1 - alpha) * angle) / sin(angle)
        return to, to + tuned


def _trim(models: Models, share: float) -> float:
    """The magnitude under which the `share` smallest changes of all tensors together lie (TIES)."""
    pairs = [(entry, piece) for entry in models.merged for piece in chunks(0, entry.num_entries)]
    dropped, high, bits = int(share * sum(entry.num_entries for entry in models.merged)), -1, 0
    for size in (1 << 16, 1 << 15):
        counts = np.zeros(size, np.int64)
        for entry, piece in pairs:
            _, start, sft = models.pieces(entry.name, piece)
            kernel.count_magnitudes(start, sft, counts, high)
        below = np.cumsum(counts) - counts  # how many lie in lower classes
        place = int(np.searchsorted(below, dropped, side="right")) - 1
        dropped -= int(below[place])
        bits = (high << 15 | place) if high >= 0 else 0
        high = place
    return float(np.uint32(bits).view(np.float32))


def _merge_part(models: Models, plans: Sequence[_Plan], entry: Entry, place: slice) -> Part:
    """One part of one tensor by every recipe.

    Raises:
        ValueError: NaN or infinity in a side, or in a result.
    """
    kind = np.dtype(NUMPY_TYPES[entry.dtype])
    outs = [np.empty(place.stop - place.start, kind) for _ in plans]
    totals = [Totals() for _ in plans]
    for piece in chunks(place.start, place.stop):
        base, start, sft = models.pieces(entry.name, piece)
        inside = slice(piece.start - place.start, piece.stop - place.start)
        for plan, total, out in zip(plans, totals, outs, strict=True):
            recipe, (alpha, scale) = plan.recipe, plan.factors[entry.name]
            direct = kind in (np.float32, np.uint16)
            target = out[inside] if direct else np.empty(base.size, np.float32)
            kernel.merge(
                base,
                start if recipe.towards == "start" else base,
                start,
                sft,
                target,
                first=piece.start & 0xFFFFFFFF,
                keys=mask_keys(recipe.seed, entry.name, piece.start),
                threshold=recipe.threshold,
                trim=plan.trim,
                boost=recipe.boost,
                alpha=alpha,
                scale=scale,
                sums=total.sums,
                counts=total.counts,
            )
            if not direct:
                _store(target, out[inside], total.counts)
    for plan, total in zip(plans, totals, strict=True):
        if not np.isfinite(total.sums).all() or total.counts[kernel.COUNTS.index("num_not_finite")]:
            check_finite(models.sides, entry.name, place)
            raise overflow(entry, plan.recipe)
    return Part(entry, place, outs, totals)


def _store(exact: NDArray, out: NDArray, counts: NDArray) -> None:
    """float32 results in a type that the kernel does not write (float16, float64), with what that changed."""
    with np.errstate(over="ignore"):
        out[:] = exact
    stored = out.astype(np.float32)
    counts[kernel.COUNTS.index("num_rounded")] += np.count_nonzero(stored != exact)
    lost = np.count_nonzero(~np.isfinite(stored)) - np.count_nonzero(~np.isfinite(exact))
    counts[kernel.COUNTS.index("num_not_finite")] += lost
