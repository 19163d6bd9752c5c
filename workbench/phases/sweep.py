"""Phase `sweep`, on demand: the process of a merge lab.

Reads the pair's sums, then does what `requests.jsonl` asks for, one after the other: merges in memory,
straight into an engine that stays warm, and measures. It ends by itself when nothing was asked for a
while, or when a run wants the machine. Run as `python -m workbench.phases.sweep LAB_DIR`.
"""

import logging
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from workbench import disk, labdir, store
from workbench import lab as labs
from workbench.core.layers import layer_of, part_of
from workbench.events import append_lines, cut_torn, read_lines
from workbench.labdir import Export, LabDir, Point, Search, label, point_id
from workbench.merging.export import export
from workbench.merging.files import restore
from workbench.merging.stream import Models, open_models, pair_moments, recipe_for, weight_change
from workbench.phases.measuring import Measuring
from workbench.phases.search import next_merge
from workbench.place import take_place
from workbench.processes import record_process
from workbench.queueing import is_taken, spare_threads
from workbench.redact import redact_output, redacted
from workbench.rundir import read_json, store_path, write_json

logger = logging.getLogger(__name__)
WARM_S = 180.0
POLL_S = 0.3


class Cancelled(Exception):
    """The request was taken back."""


class Sweep:
    """The process of one lab."""

    def __init__(self, lab: LabDir) -> None:
        self.lab, self.root = lab, lab.path.parents[1]
        self.config = labdir.read_config(lab)
        sides = [Path(path) for path in (self.config.base, self.config.start, self.config.sft)]
        restore(*sides)
        self.models: Models = open_models(*sides)
        for file in (lab.outcomes, lab.points):
            cut_torn(file)
        self.outcomes, _ = read_lines(lab.outcomes)
        self.measuring = Measuring(self.config, self.models, labs.layer_importance(lab))
        self.offsets: dict[str, int] = {}

    def run(self) -> None:
        """Do what was asked for, and what is asked for while there is time."""
        if not self.lab.moments.exists():
            self.say("reading base, start and sft")
            self.write_moments()
        self.say(None)
        idle_since = time.monotonic()
        while time.monotonic() - idle_since < WARM_S:
            if left := labdir.requests_left(self.lab):
                self.attempt(*left[0])
                idle_since = time.monotonic()
            elif is_taken(self.root):  # a run: it may need the memory that the engine holds
                return
            else:
                time.sleep(POLL_S)

    def attempt(self, number: int, request: Point | Search | Export) -> None:
        """Do one request; what goes wrong is said, and does not end the lab."""
        error = None
        try:
            point = self.spread if self.config.ray else self.point
            {"point": point, "search": self.search, "export": self.export}[request.kind](number, request)
        except Cancelled:
            self.say(None)
            return
        except (ValueError, OSError) as problem:
            if disk.is_full(problem):
                raise  # the request stays: it is gone on with once there is room
            logger.exception("request %d failed", number)
            error = redacted(str(problem))
        before = read_json(self.lab.status) or {}
        if (done := before.get("requests_done", 0)) > number:  # the cluster has said how these went
            self.say(None, error=error or before.get("error"), requests_done=done)
        else:
            self.say(None, error=error, requests_done=number + 1)

    def spread(self, number: int, request: Point) -> None:
        """This point and those asked for after it, on the cluster."""
        from workbench.cluster.sweep import points_on_nodes  # ray

        self.say("handing the merges to the cluster")
        last = max(number for number, _ in labs.leading_points(self.lab))

        def look() -> None:
            self.record()
            if (read_json(self.lab.status) or {}).get("requests_done", 0) <= last:
                self.check(last)

        points_on_nodes(self.lab, self.config, look)
        self.outcomes, _ = read_lines(self.lab.outcomes)
        self.record()

    def say(self, doing: str | None, **news: Any) -> None:
        """Write the lab's status."""
        before = read_json(self.lab.status) or {}
        kept = {"requests_done": before.get("requests_done", 0), "error": None, "done": 0, "total": 0}
        write_json(self.lab.status, kept | {"doing": doing, "at": time.time()} | news)

    def check(self, number: int) -> None:
        """Raise Cancelled where request `number` is no longer wanted."""
        if number not in {left for left, _ in labdir.requests_left(self.lab)}:
            raise Cancelled

    def write_moments(self) -> None:
        """The sums of every tensor of the pair, in one pass."""
        found = pair_moments(self.models)
        change = weight_change(self.models, found)
        moved = [max(0.0, float(sums[0] + 2 * sums[1] + sums[2])) ** 0.5 for sums in found.values()]
        layers = [part_of(name, self.models.base.entries[name].shape)[0] for name in found]
        ceiling = [sum(m for m, n in zip(moved, layers, strict=True) if n == layer) for layer in range(len(change))]
        write_json(
            self.lab.moments,
            {
                "moments": [sums.tolist() for sums in found.values()],
                "layers": [layer_of(name) for name in found],
                "counted": layers,
                "tensors": list(found),
                "change": change,
                "ceiling": max(ceiling, default=0.0),
            },
        )

    def search(self, number: int, request: Search) -> None:
        """Merges chosen by an optimiser from all that is known; each is recorded as it lands."""
        rows, _ = read_lines(self.lab.points)
        done = sum(row.get("search") == number for row in rows)
        for trial in range(done, request.num_points):
            rows, _ = read_lines(self.lab.points)
            known = [row for row in rows if row["split"] == "validation"]
            merge = next_merge(known, request.seed + trial)
            point = Point(merge=merge, seed=request.seed, num_questions=request.num_questions, beside=request.beside)
            self.point(number, point, f"search {trial + 1} of {request.num_points}: ", search=number)

    def export(self, number: int, request: Export) -> None:
        """Write a merge to a directory, with its card."""
        self.say(f"writing {request.directory}")
        recipe = recipe_for(self.models, request.merge, request.seed, labs.layer_importance(self.lab))
        rows, _ = read_lines(self.lab.points)
        name = point_id(request.merge, request.seed)
        scores = [s | {"split": row["split"]} for row in rows if row["point_id"] == name for s in row["scores"]]
        export(self.models, recipe, Path(request.directory), scores, self.config)

    def point(self, number: int, request: Point, prefix: str = "", search: int | None = None) -> None:
        """Merge in memory and answer what was not answered yet, on every task that can be used."""
        text = label(request.merge, request.seed)
        started = time.time()

        def waiting() -> None:
            self.say(f"waiting for a run on this machine to end, before {text}")
            self.check(number)

        def look(done: int, total: int) -> None:
            self.check(number)
            self.say(prefix + text, done=done, total=total)

        if request.beside:
            torch.set_num_threads(1)
            scores = self.measure(request, look)
        else:
            with take_place(self.lab, self.root, "lab", waiting):
                torch.set_num_threads(self.config.threads or spare_threads())
                scores = self.measure(request, look)
        self.landed(request, scores, time.time() - started, search)

    def measure(self, request: Point, look: Callable[[int, int], None]) -> list[dict[str, Any]]:
        """Accuracy on each task; answers are recorded as they come."""
        self.measuring.importance = labs.layer_importance(self.lab)  # it may have been measured meanwhile
        return self.measuring.measure(request, self.outcomes, self.keep, look)

    def keep(self, rows: list[dict[str, Any]]) -> None:
        """Record fresh answers."""
        append_lines(self.lab.outcomes, rows)
        self.outcomes += rows

    def landed(self, request: Point, scores: list[dict[str, Any]], seconds: float, search: int | None = None) -> None:
        """Record a point that is measured."""
        row = {"point_id": point_id(request.merge, request.seed), "merge": request.merge.model_dump(mode="json")}
        row |= {"seed": request.seed, "split": request.split, "scores": scores, "search": search, "seconds": seconds}
        append_lines(self.lab.points, [row | {"ts": time.time()}])
        self.record()

    def record(self) -> None:
        """Bring the store up to date; somebody who holds its file open only delays this."""
        try:
            self.offsets = store.ingest(store_path(self.root), self.lab, self.offsets)
        except store.StoreBusy as error:
            logger.warning("%s; trying again later", error)


def main() -> None:
    """Work in the lab named on the command line; one process per lab."""
    redact_output()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    lab = LabDir(Path(sys.argv[1]).absolute())
    while True:
        try:
            with FileLock(lab.path / ".lab.lock", timeout=5):
                record_process(lab, os.getpid())  # of two that were started at once, the one that works
                try:
                    disk.reserve(lab.path)
                    Sweep(lab).run()
                except (ValueError, OSError) as error:  # the checkpoints cannot be read
                    logger.exception("the lab failed")
                    why = str(error)
                    if disk.is_full(error):
                        why = disk.sentence(lab.path, "ask again; what was answered is kept")
                    said = (read_json(lab.status) or {}) | {"doing": None, "error": redacted(why)}
                    with suppress(OSError):
                        disk.write_status(lab.status, said)
                    return
                # From here on `wake` starts another process; what was asked for just before is ours.
                lab.process.unlink(missing_ok=True)
        except Timeout:
            return
        if not labdir.requests_left(lab):
            return


if __name__ == "__main__":
    main()
