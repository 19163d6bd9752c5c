"""The points of a sweep on the cluster: each merge an independent task, measured where there is room.

A lab whose run was on a cluster hands its points to a job of Ray's, `python -m workbench.cluster.sweep LAB_DIR`,
which alone writes the lab's files meanwhile; the lab's own process waits, and records.
"""

import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import ray
from ray.job_submission import JobStatus

from workbench import lab as labs
from workbench.cluster import GPUS
from workbench.cluster.client import ALIVE, client, entrypoint, last_lines
from workbench.cluster.connection import count_gpus, engine_resources, result
from workbench.cluster.points import measure
from workbench.labdir import LabConfig, LabDir, label, point_id
from workbench.phases.sweep import Sweep
from workbench.redact import redact_output, redacted

logger = logging.getLogger(__name__)
POLL_S = 1.0


def points_on_nodes(lab: LabDir, config: LabConfig, look: Callable[[], None]) -> None:
    """Have the points that are asked for measured, and wait; `look` is called meanwhile, and may raise to give up.

    One job at a time writes the lab's files: one that a killed lab has left is waited for.

    Raises:
        ValueError: the cluster does not answer, or the job failed.
    """
    try:
        jobs = client(config.ray.address)
        mine = [job.submission_id for job in jobs.list_jobs() if (job.submission_id or "").startswith(f"{lab.lab_id}.")]
        job = next((name for name in mine if jobs.get_job_status(name) in ALIVE), None) or jobs.submit_job(
            entrypoint=entrypoint("workbench.cluster.sweep", str(lab.path)),
            submission_id=f"{lab.lab_id}.{time.time_ns()}",
        )
        try:
            while (status := jobs.get_job_status(job)) in ALIVE:
                look()
                time.sleep(POLL_S)
        finally:
            jobs.stop_job(job)  # nothing happens where it has ended
            while jobs.get_job_status(job) in ALIVE:
                time.sleep(POLL_S)
        if status == JobStatus.FAILED:
            raise ValueError(f"the sweep's job on the cluster failed: {last_lines(jobs, job)}")
    except (ConnectionError, RuntimeError) as error:
        raise ValueError(f"the Ray cluster at {config.ray.address} does not answer: {redacted(str(error))}") from error


class ClusterSweep(Sweep):
    """In the job: hands out the points and writes down what comes back, in the order in which they were asked for."""

    def points(self) -> None:
        """Every point before the next request of another kind."""
        left = labs.leading_points(self.lab)
        config = self.config.model_copy(update={"engine": self.config.engine.model_copy(update={"data_parallel": 1})})
        resources = engine_resources(config.engine, config.threads or 1)
        # A process keeps the GPU that it was given first: with GPUs each point has a process of its own.
        options = resources | {"scheduling_strategy": "SPREAD"} | ({"max_calls": 1} if resources["num_gpus"] else {})
        task = ray.remote(**options)(measure)
        importance = labs.layer_importance(self.lab)
        asked, error = [], None
        for _, request in left:
            name = point_id(request.merge, request.seed)
            answered = [row for row in self.outcomes if row["point_id"] == name]
            asked.append(task.remote(config, importance, request, answered))
        for done, ((number, request), ref) in enumerate(zip(left, asked, strict=True)):
            self.say(
                f"{len(left)} merges on the cluster, {label(request.merge, request.seed)}", done=done, total=len(left)
            )
            try:
                scores, fresh, seconds = result(ref)
                self.keep(fresh)
                self.landed(request, scores, seconds)
            except ValueError as problem:
                error = redacted(str(problem))
            self.say(None, error=error, requests_done=number + 1)

    def record(self) -> None:
        """The store is not here."""


def main() -> None:
    """Measure the points that a lab asks for."""
    redact_output()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    sweep = ClusterSweep(LabDir(Path(sys.argv[1])))
    os.environ[GPUS] = str(count_gpus())
    sweep.points()


if __name__ == "__main__":
    main()
