"""Phase `analyze` on any two checkpoints, outside of a run: waits for the machine's one place first."""

from typing import Any

from workbench.events import Emit
from workbench.jobs import AnalyzeJob
from workbench.phases.analyze import run as analyze
from workbench.phases.process import main
from workbench.place import take_place
from workbench.queueing import WorkDir
from workbench.rundir import PhaseDir


def run(job: AnalyzeJob, place: PhaseDir, emit: Emit) -> dict[str, Any]:
    """Analyse once nobody else has the place."""
    with take_place(WorkDir(place.path), place.path.parents[3], "analysis"):
        return analyze(job, place, emit)


if __name__ == "__main__":
    main(AnalyzeJob, run)
