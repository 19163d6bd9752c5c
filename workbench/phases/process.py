"""What every phase process does around its work: read the job, report, put the result in place last.

Run as `python -m workbench.phases.<phase> PHASE_DIR`.
"""

import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from workbench import disk
from workbench.checkpoints import is_removed
from workbench.events import Emit, cut_torn, event_log
from workbench.jobs import Section, model_paths
from workbench.phases.cost import Meter
from workbench.redact import redact_output, redacted
from workbench.rundir import ERROR, PhaseDir, flush, write_json

logger = logging.getLogger(__name__)
Job = TypeVar("Job", bound=Section)


def main(job_type: type[Job], run: Callable[[Job, PhaseDir, Emit], dict[str, Any]]) -> None:
    """Run the phase whose directory is named on the command line; exit with a sentence where it fails."""
    redact_output()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    if problem := run_phase(Path(sys.argv[1]).absolute(), job_type, run):
        sys.exit(f"{ERROR}{problem}")


def is_first() -> bool:
    """Whether this process speaks for its phase: the only one, or the first of a distributed training."""
    return os.environ.get("RANK", "0") == "0"


def silent(name: str, value: float | None = None, step: int = 0, **data: Any) -> None:
    """The `Emit` of the other processes of a distributed training."""


def restore_inputs(job: Section, emit: Emit) -> None:
    """Make again what the phase reads and was removed to save space; nothing else is touched."""
    removed = [Path(path) for path in sorted(model_paths(job)) if is_removed(Path(path))]
    if removed:
        from workbench.merging.files import restore

        for path in restore(*removed):
            emit("note", text=f"{path} was made again, the same byte for byte")


def run_phase(path: Path, job_type: type[Job], run: Callable[[Job, PhaseDir, Emit], dict[str, Any]]) -> str | None:
    """Run one phase, unless `result.json` is already there; what is wrong, where it cannot be done."""
    place = PhaseDir(path, int(path.parent.name.removeprefix("iteration_")), path.name)
    if place.result.exists():
        return None
    started = time.time()
    job = job_type.model_validate_json(place.job.read_text(encoding="utf-8"))
    emit = event_log(place.events) if is_first() else silent
    for file in (place.events, place.solutions, place.outcomes) if is_first() else ():
        cut_torn(file)
    try:
        with Meter(place, emit) as meter:
            restore_inputs(job, emit)
            summary = run(job, place, emit)
        if is_first():
            flush(place.path)
            ended = {"started_at": started, "ended_at": time.time(), "cost": meter.cost(summary), "summary": summary}
            write_json(place.result, {"phase": place.phase, "iteration": place.iteration} | ended)
    except Exception as error:
        if not (disk.is_full(error) or isinstance(error, ValueError | ChildProcessError)):
            raise
        logger.exception("the phase failed")
        if not disk.is_full(error):
            return redacted(str(error))
        disk.say(f"{ERROR}{disk.sentence(place.path)}")
        sys.exit(disk.EXIT_CODE)
    return None
