"""A run as a job of a Ray cluster: submitted, followed, stopped (Ray Jobs API), from wherever it was launched."""

import shlex
import sys
from typing import Any

import requests
from ray.dashboard.modules.dashboard_sdk import SubmissionClient
from ray.job_submission import JobStatus, JobSubmissionClient

from workbench.redact import redacted
from workbench.rundir import RunDir

ALIVE = (JobStatus.PENDING, JobStatus.RUNNING)
LOG_LINES = 12
ANSWER_S = 30.0
"""Longest wait for one answer of the dashboard."""


class Jobs(JobSubmissionClient):
    """Ray's client, which here never waits for ever and has one word for a cluster that does not answer."""

    def __init__(self, address: str) -> None:
        if address == "auto":
            super().__init__(address)
        else:  # JobSubmissionClient's own would take RAY_ADDRESS of the environment before the address it is given
            SubmissionClient.__init__(self, address)
            self._check_connection_and_version("2.0")

    def _do_request(self, method: str, endpoint: str, **options: Any) -> requests.Response:
        try:
            return super()._do_request(method, endpoint, **{"timeout": ANSWER_S} | options)
        except requests.RequestException as error:
            raise ConnectionError(f"{type(error).__name__}: {redacted(str(error))}") from error


def client(address: str) -> Jobs:
    """The job server of the cluster at an address, or of the one that this machine is part of (auto).

    Raises:
        ConnectionError: nobody answers there, or no Ray.
    """
    try:
        return Jobs(address)
    except (ValueError, KeyError, RuntimeError) as error:  # another server, which speaks otherwise
        raise ConnectionError(f"what answers at {address} is no Ray dashboard ({error})") from error


def entrypoint(module: str, *arguments: str) -> str:
    """The command that runs a module of ours on the head node: with this Python, where that is not there `python`."""
    mine, rest = shlex.quote(sys.executable), shlex.join(["-m", module, *arguments])
    return f"if [ -x {mine} ]; then exec {mine} {rest}; else exec python {rest}; fi"


def jobs_of(jobs: Jobs, run: RunDir) -> list[Any]:
    """The jobs of a run, the last one last: it has one for each time that it was started or resumed."""
    found = [job for job in jobs.list_jobs() if (job.submission_id or "").startswith(f"{run.run_id}.")]
    return sorted(found, key=lambda job: int(job.submission_id.rpartition(".")[2]))


def stop_jobs_of(jobs: Jobs, run: RunDir) -> None:
    """Stop whatever of a run is at work."""
    for job in jobs_of(jobs, run):
        if job.status in ALIVE:
            jobs.stop_job(job.submission_id)


def submit(jobs: Jobs, run: RunDir) -> str:
    """Have the run's runner started in the cluster; its job's id."""
    before = jobs_of(jobs, run)
    number = int(before[-1].submission_id.rpartition(".")[2]) + 1 if before else 1
    return jobs.submit_job(
        entrypoint=entrypoint("workbench.cluster.job", str(run.path)), submission_id=f"{run.run_id}.{number}"
    )


def last_lines(jobs: Jobs, job: str) -> str:
    """The end of what a job has said."""
    return "\n".join(jobs.get_job_logs(job).splitlines()[-LOG_LINES:])
