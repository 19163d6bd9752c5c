"""Merging and weight change on the cluster, sharded by tensor, and importance on one of its nodes.

Tasks read the checkpoints where they run and send back what the phase's process writes down; a task that is lost
with its node is done again by Ray.
"""

import tempfile
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import ray

from workbench.analysis.change import Reader, open_pair, squares
from workbench.cluster import here
from workbench.cluster.connection import connect, gpus, nodes, result
from workbench.cluster.relay import relayed, sender
from workbench.cluster.storage import publish_for_nodes, seen_from_here
from workbench.core.recipe import Recipe
from workbench.events import Emit
from workbench.examples import Example
from workbench.jobs import AnalyzeJob
from workbench.merging.adapters import AdapterReader
from workbench.merging.stream import Models, Part, open_models, part_merger, places

SHARD_ENTRIES = 2**25
"""Entries of a shard: 64 MB of bfloat16 a recipe come back at once, whatever the model's size."""
AHEAD = 2
"""Shards under way or waiting for the writer, per core."""


def merged_parts(models: Models, recipes: Sequence[Recipe], *, threads: int | None = None) -> Iterator[Part]:
    """As `merging.stream.merged_parts`, bit for bit, computed on the nodes; `threads` has no meaning here."""
    connect()
    sides = [str(side.path) for side in (models.base, models.start, models.sft)]
    for side in dict.fromkeys(sides):
        publish_for_nodes(Path(side))
    shards = _shards(list(places(models)), lambda place: place[1].stop - place[1].start)
    for parts in _in_order(_merge, shards, tuple(sides), tuple(recipes), here().storage):
        yield from parts


def _merge(shard: list, sides: tuple[str, ...], recipes: tuple[Recipe, ...], storage: str | None) -> list[Part]:
    return [_merger(sides, recipes, storage)(place) for place in shard]


@lru_cache(1)
def _merger(sides: tuple[str, ...], recipes: tuple[Recipe, ...], storage: str | None) -> Any:
    return part_merger(open_models(*(seen_from_here(side, storage) for side in sides)), recipes)


def all_squares(left: Reader, right: Reader, names: Sequence[str], *, threads: int | None = None) -> list[np.ndarray]:
    """As `analysis.change.squares_here`, computed on the nodes; `threads` has no meaning here."""
    connect()
    trained_on = right.start.path if isinstance(right, AdapterReader) else None
    sides = [str(left.path), str(right.path), *([str(trained_on)] if trained_on else [])]
    for side in dict.fromkeys(sides):
        publish_for_nodes(Path(side))
    shards = _shards(names, lambda name: left.entries[name].num_entries)
    return [sums for found in _in_order(_squares, shards, tuple(sides), here().storage) for sums in found]


def _squares(shard: list[str], sides: tuple[str, ...], storage: str | None) -> list[np.ndarray]:
    left, right = open_pair(*(seen_from_here(side, storage) for side in sides))
    return [squares(left, right, name) for name in shard]


def measure_on_a_node(
    job: AnalyzeJob, texts: Mapping[str, tuple[str, list[Example]]], folder: Path, emit: Emit
) -> None:
    """As `phases.analyze.measure_here`, in one task for each set, with a GPU where the cluster has any."""
    connect()
    publish_for_nodes(Path(job.start.path))
    resources = {"num_gpus": 1, "num_cpus": 1, "max_calls": 1} if gpus() else {"num_cpus": job.threads}
    task = ray.remote(**resources)(_measure)
    with relayed(emit) as mailbox:
        made = [task.remote(job, {name: about}, mailbox, here().storage) for name, about in texts.items()]
        for name, ref in zip(texts, made, strict=True):
            files = result(ref)
            for file in (f"importance.{name}.npz", f"importance.{name}.json"):  # the .json says that the set is done
                scratch = folder / f".{file}.tmp"
                scratch.write_bytes(files[file])
                scratch.replace(folder / file)


def _measure(
    job: AnalyzeJob, texts: dict[str, tuple[str, list[Example]]], mailbox: Any, storage: str | None
) -> dict[str, bytes]:
    """The files of a set."""
    import torch

    from workbench.phases.analyze import measure_here

    torch.set_num_threads(job.threads)
    start = job.start.model_copy(update={"path": str(seen_from_here(job.start.path, storage))})
    with tempfile.TemporaryDirectory() as folder:
        measure_here(job.model_copy(update={"start": start}), texts, Path(folder), sender(mailbox))
        return {file.name: file.read_bytes() for file in Path(folder).glob("importance.*")}


def _shards(items: Sequence[Any], size_of: Any) -> Iterator[list[Any]]:
    """Items in their order, in groups of about `SHARD_ENTRIES`; in smaller ones where each core would not get some."""
    sizes = [size_of(item) for item in items]
    cores = sum(node.cpus for node in nodes()) or 1
    full, shard, held = min(SHARD_ENTRIES, -(-sum(sizes) // (2 * cores))), [], 0
    for item, size in zip(items, sizes, strict=True):
        shard.append(item)
        held += size
        if held >= full:
            yield shard
            shard, held = [], 0
    if shard:
        yield shard


def _in_order(task: Any, shards: Iterable[list[Any]], *arguments: Any) -> Iterator[Any]:
    """What a task makes of each shard, in order; the next ones wait for whoever takes the results."""
    waiting: deque[Any] = deque()
    remote = ray.remote(task).options(num_cpus=1, scheduling_strategy="SPREAD")
    most = AHEAD * (sum(node.cpus for node in nodes()) or 1)
    for shard in shards:
        waiting.append(remote.remote(shard, *arguments))
        if len(waiting) >= most:
            yield result(waiting.popleft())
    while waiting:
        yield result(waiting.popleft())
