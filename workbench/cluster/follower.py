"""The local end of a run on a cluster: submits its job or finds it again, records what it writes, passes a stop on.

It is the run's process on this machine, as `workbench.runner` is of a run that works here. The job does not need it:
a follower that was killed is started anew and goes on following.
"""

import logging
import os
import time
from collections.abc import Callable
from typing import Any

from ray.job_submission import JobStatus

from workbench import disk, stopping
from workbench.cluster.client import ALIVE, client, jobs_of, last_lines, stop_jobs_of, submit
from workbench.launch import ENDED
from workbench.processes import record_process
from workbench.redact import redacted
from workbench.rundir import last_status
from workbench.runner import RECORD_EVERY_S, Runner
from workbench.stopping import Stopped

logger = logging.getLogger("workbench.follower")
UNREACHABLE_S = 600.0
"""How long a cluster may not answer before the run counts as failed; its job may go on, and `resume` finds it."""
STOP_S = 6.0


class Follower(Runner):
    """Follows one run's job."""

    def settle(self) -> None:
        """Say that this process follows the run: its files are written by another."""
        record_process(self.run, os.getpid(), follows=True)
        disk.reserve(self.run.path)

    def main(self) -> int:
        """Follow until the run's job has ended, and see that the run says how."""
        try:
            self.settle()
            while self.follow(self.find() or self.start()) == JobStatus.STOPPED and self.status() not in ENDED:
                logger.info("the job was still being stopped when the run was resumed; starting another")
        except Stopped:
            return self.stop()
        except Exception as error:
            logger.exception("the follower failed")
            if stopping.asked():
                return self.stop()
            self.note("failed", self.where(), self.lost(error))
        return 0 if self.status() in ("done", "stopped") else 1

    def status(self) -> str:
        """What the run last said of itself."""
        return last_status(self.run)["status"]

    def find(self) -> str | None:
        """The job of this run that is at work: who followed it before is gone.

        Where the run has just been resumed, one that is still ending is none.
        """
        until = time.monotonic() + (STOP_S if self.status() == "queued" else 0)
        while alive := [job for job in self.asked(lambda: jobs_of(self.jobs(), self.run)) if job.status in ALIVE]:
            if time.monotonic() >= until:
                break
            stopping.pause(0.5)
        else:
            return None
        logger.info("job %s goes on; following it", alive[-1].submission_id)
        if self.status() == "queued":
            self.note("running")
        return alive[-1].submission_id

    def start(self) -> str:
        """Submit the job."""
        self.note("running")
        job = submit(self.jobs(), self.run)
        logger.info("submitted as job %s", job)
        return job

    def follow(self, job: str) -> JobStatus:
        """Record until the job has ended, and say for it what it could not; how it ended."""
        while (status := self.asked(lambda: self.jobs().get_job_status(job))) in ALIVE:
            stopping.pause(RECORD_EVERY_S)
            self.record()
        stopping.look()  # asked for while the cluster was
        if self.status() == "stopping":
            self.note("stopped", self.where())
        elif self.status() not in ENDED and status == JobStatus.SUCCEEDED:
            self.note("done")  # its last word and ours met
        elif self.status() not in ENDED and status == JobStatus.FAILED:
            about = self.jobs().get_job_info(job).message or ""
            self.note("failed", self.where(), redacted(
                f"Job {job} on the cluster failed. {about}\n{last_lines(self.jobs(), job)}\n"
                f"Once the cause is mended: workbench resume {self.run.run_id}"
            ))  # fmt: skip
        self.record()
        return status

    def jobs(self) -> Any:
        """The cluster's job server."""
        return client(self.config.ray.address)

    def asked(self, question: Callable[[], Any]) -> Any:
        """The answer of a cluster; one that does not answer for a while is waited for."""
        since = time.monotonic()
        while True:
            try:
                return stopping.aside(question)
            except ConnectionError:
                if time.monotonic() - since > UNREACHABLE_S:
                    raise
                stopping.pause(RECORD_EVERY_S)
                self.record()

    def stop(self) -> int:
        """Stop whatever of the run is on the cluster, and say that the run has stopped where it could not.

        The run's status says `stopping`, which its runner in the cluster obeys; the cluster is asked too.
        """
        try:
            stop_jobs_of(self.jobs(), self.run)
        except (ConnectionError, RuntimeError) as error:
            logger.warning("the cluster cannot be asked to stop the job: %s", error)
        deadline = time.monotonic() + STOP_S
        while self.status() not in ENDED and time.monotonic() < deadline:
            time.sleep(0.3)
        if self.status() not in ENDED:
            self.note("stopped", self.where())
        self.record()
        return 0

    def lost(self, error: Exception) -> str:
        """What to do where the follower cannot go on."""
        if disk.is_full(error):
            return disk.sentence(self.root, f"workbench resume {self.run.run_id}")
        return redacted(
            f"The Ray cluster at {self.config.ray.address} cannot be followed ({type(error).__name__}: {error}). If it "
            f"is there its job goes on: workbench resume {self.run.run_id} follows it again, or starts another"
        )
