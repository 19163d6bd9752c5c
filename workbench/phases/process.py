"""What every phase process does around its work: read the job, report, put the result in place last.

Run as `python -m workbench.phases.<phase> PHASE_DIR`.
"""

import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import psutil

from workbench.events import Emit, event_log
from workbench.jobs import Section
from workbench.rundir import ERROR, PhaseDir, write_json

logger = logging.getLogger(__name__)
Job = TypeVar("Job", bound=Section)


def main(job_type: type[Job], run: Callable[[Job, PhaseDir, Emit], dict[str, Any]]) -> None:
    """Run one phase from its directory; do nothing where `result.json` is already there."""
    path = Path(sys.argv[1]).absolute()
    place = PhaseDir(path, int(path.parent.name.removeprefix("iteration_")), path.name)
    if place.result.exists():
        return
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    job = job_type.model_validate_json(place.job.read_text(encoding="utf-8"))
    try:
        summary = run(job, place, event_log(place.events))
    except ValueError as error:
        logger.exception("the phase failed")
        sys.exit(f"{ERROR}{error}")
    write_json(
        place.result,
        {
            "phase": place.phase,
            "iteration": place.iteration,
            "started_at": psutil.Process().create_time(),
            "ended_at": time.time(),
            "summary": summary,
        },
    )
