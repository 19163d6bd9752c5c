"""The runner of a run in the cluster: the same runner, which here alone writes the run's files, and no store.

A job of Ray's, on its head node; it survives whoever launched it. Run as `python -m workbench.cluster.job RUN_DIR`.
"""

import logging
import os
import sys
from pathlib import Path

from workbench import stopping
from workbench.cluster import GPUS, MARK
from workbench.cluster.connection import count_gpus, nodes
from workbench.jobs import Section
from workbench.redact import redact_output
from workbench.rundir import PhaseDir, RunDir, last_status
from workbench.runner import Runner
from workbench.twins import SHARED


class ClusterRunner(Runner):
    """The run's phases, whose work goes to the nodes; what they wrote is recorded by whoever follows."""

    def __init__(self, run: RunDir) -> None:
        super().__init__(run)
        os.environ[MARK] = self.config.ray.model_dump_json()
        os.environ[GPUS] = str(count_gpus())
        # What the hub has goes where every node sees it; the token stays where it is.
        os.environ.setdefault("HF_HUB_CACHE", str(self.root / "hub"))
        self.threads = self.config.threads or min((node.cpus for node in nodes() if node.cpus), default=1)

    def note(self, status: str, place: PhaseDir | None = None, error: str | None = None) -> None:
        """As any runner; a run that was stopped before its job had begun does not begin."""
        if status == "running":
            self.record()
        super().note(status, place, error)

    def run_phase(self, place: PhaseDir, job: Section) -> None:
        """As any runner, but who may have to wait for a twin does not keep from it what the engines hold."""
        shared = self.config.group and (place.iteration, place.phase) in SHARED
        if shared and self.warm is not None and self.warm.poll() is None:
            self.rest_warm()
        super().run_phase(place, job)

    def settle(self) -> None:
        """The process that the run is known by is the one that follows."""

    def record(self) -> None:
        """The store is not here; but a stop reaches the run by its status file, whoever else is gone or out of reach.

        Raises:
            Stopped: it says so.
        """
        if last_status(self.run)["status"] in ("stopping", "stopped"):
            stopping.ask()
        stopping.look()


def main() -> int:
    """Run the run directory named on the command line."""
    redact_output()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    run = RunDir(Path(sys.argv[1]))
    runner = ClusterRunner(run)
    stopping.listen()  # after Ray has put its own there
    return runner.main()


if __name__ == "__main__":
    stopping.leave(main)
