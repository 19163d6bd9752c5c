"""What the runs of one comparison have in common is done once: the base's scores, its samples, a first SFT.

A phase is another run's twin when both have the same input, but for the run's own name, and nothing that
the methods do differently came before it. It is taken over with the names changed; large files are shared
by hard links.
"""

import json
import logging
import os
import shutil
import time
from pathlib import Path

from workbench import checkpoints, stopping
from workbench.core.methods import MADE_BY
from workbench.processes import is_alive
from workbench.rundir import PhaseDir, RunDir, all_runs, read_json, write_json

logger = logging.getLogger(__name__)
POLL_S, ABOUT_TO_S = 0.5, 20.0
SHARED = ((0, "evaluate"), (1, "sample"), (1, "sft"))
"""(iteration, phase): what depends on the base, the tasks and the seed alone, where the inputs agree."""
TEXTS = {".json", ".jsonl", ".log"}


def find_twin(run: RunDir, place: PhaseDir, group: str | None) -> RunDir | None:
    """A run of the same group that has done the same phase, and still has what came of it.

    One that is just doing it is waited for. A phase that this run has begun itself it goes on with: what it reported
    is recorded already.
    """
    if group is None or (place.iteration, place.phase) not in SHARED or place.events.exists():
        return None
    others = [other for other in all_runs(run.path.parents[1]) if other.run_id != run.run_id and _group(other) == group]
    return next((other for other in others if _wait_for(other, run, place)), None)


def _group(run: RunDir) -> str | None:
    return (read_json(run.config) or {}).get("config", {}).get("group")


def _wait_for(other: RunDir, run: RunDir, place: PhaseDir) -> bool:
    """Whether another run has done the same phase, once it has if it began before us."""
    theirs, since, told = other.phase(place.iteration, place.phase), time.monotonic(), False
    while True:
        if theirs.job.exists() and _renamed(theirs.job, other, run) != place.job.read_text(encoding="utf-8"):
            return False
        if theirs.result.exists():
            return theirs.job.exists() and (place.phase not in MADE_BY or is_whole(theirs.checkpoint))
        if theirs.job.exists():
            is_first = _began(theirs, other) < _began(place, run)
        else:  # two runs that go side by side: the other is about to ask for it
            is_first = other.run_id < run.run_id and time.monotonic() - since < ABOUT_TO_S
        if not is_first or not is_alive(other):
            return False
        if not told:
            logger.info("%s is doing the same; waiting for it", other.run_id)
            told = True
        stopping.pause(POLL_S)


def _began(place: PhaseDir, run: RunDir) -> tuple[float, str]:
    """When a phase was asked for; the id tells apart what was asked for at once."""
    return place.job.stat().st_mtime, run.run_id


def is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint's weights are there: people delete them to save space."""
    try:
        checkpoints.describe(checkpoint)
    except (ValueError, OSError):
        return False
    return True


def adopt(twin: RunDir, run: RunDir, place: PhaseDir) -> None:
    """Take over the twin's phase; the result, put in place last, says whose it is."""
    theirs = twin.phase(place.iteration, place.phase)
    for file in sorted(theirs.path.rglob("*")):
        stopping.look()
        ours = place.path / file.relative_to(theirs.path)
        if file.is_dir() or file == theirs.result or ours == place.job:
            continue
        ours.parent.mkdir(parents=True, exist_ok=True)
        ours.unlink(missing_ok=True)
        if file.suffix in TEXTS and file.parent == theirs.path:
            ours.write_text(_renamed(file, twin, run), encoding="utf-8")
        else:
            _share(file, ours)
    result = json.loads(_renamed(theirs.result, twin, run))
    write_json(place.result, {"taken_from": twin.run_id} | result)


def _renamed(file: Path, twin: RunDir, run: RunDir) -> str:
    """A text file as it would read in our run."""
    return file.read_text(encoding="utf-8").replace(twin.run_id, run.run_id)


def _share(file: Path, ours: Path) -> None:
    """A hard link, or a copy where the file system has none."""
    try:
        os.link(file, ours)
    except OSError:
        shutil.copy2(file, ours)
