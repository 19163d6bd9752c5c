"""One run, from its directory: phases in order, each a process; follow events, record, resume, stop.

Started detached by the supervisor as `python -m workbench.runner RUN_DIR`, once the run has its place. Every phase
whose `result.json` is there is done and skipped, so running again is how a run resumes.
"""

import contextlib
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

from filelock import FileLock, Timeout

from workbench import checkpoints, disk, queueing, retention, stopping, store
from workbench.commands import phase_command, phase_environment
from workbench.config import RunConfig
from workbench.core import methods
from workbench.endings import end, ended_within, explain
from workbench.jobs import Section
from workbench.launch import ENDED, observed_status
from workbench.mergeable import check_base
from workbench.plan import plan
from workbench.processes import record_process
from workbench.redact import redact_output, redacted
from workbench.rundir import PhaseDir, RunDir, last_status, read_json, store_path, write_json
from workbench.stopping import Stopped
from workbench.twins import adopt, find_twin

logger = logging.getLogger("workbench.runner")
RECORD_EVERY_S = 1.0
POLL_S = 0.1
REST_S = 120
START_S = 10
WARM = ("sample", "evaluate")
"""Phases that generate text: they share a process, and with it an engine."""


class PhaseFailed(Exception):
    """A phase ended without its result."""


class Runner:
    """The process of one run."""

    def __init__(self, run: RunDir) -> None:
        self.run, self.root = run, run.path.parents[1]
        self.config = RunConfig.model_validate(read_json(run.config)["config"])
        ticket = queueing.ticket_of(self.root, run.run_id)
        granted = ticket.granted if ticket else None
        self.threads = granted.cores if granted else self.config.threads or queueing.spare_threads()
        if granted and granted.gpus:
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(granted.gpus)
        self.offsets: dict[str, int] = {}
        self.warm: subprocess.Popen | None = None
        """The process of phases `sample` and `evaluate`, whose engine stays warm."""

    def main(self) -> int:
        """Run every phase that is not done, record how it ended."""
        try:
            self.settle()
            self.note("running")
            try:
                self.run_phases()
            finally:
                self.end_warm()
            self.note("done")
        except Stopped as reason:
            self.note("stopped", self.where(), str(reason) or None)
            return 0
        except PhaseFailed as error:
            self.note("failed", self.where(), str(error))
            return 1
        except Exception as error:
            logger.exception("the runner failed")
            if stopping.asked():
                self.note("stopped", self.where())
                return 0
            why = f"{type(error).__name__}: {error}"
            if disk.is_full(error):
                why = disk.sentence(self.root, f"workbench resume {self.run.run_id}")
            self.note("failed", self.where(), why)
            return 1
        return 0

    def settle(self) -> None:
        """Say that this process is the run's, and set room aside for its last words."""
        record_process(self.run, os.getpid())
        disk.reserve(self.run.path)

    def run_phases(self) -> None:
        """Every phase that is not done. No later phase needs an analysis: if one fails, that is said at the end.

        Raises:
            PhaseFailed: a phase ended without its result.
        """
        failed: tuple[PhaseDir, PhaseFailed] | None = None
        for place, job in plan(self.run, self.config, self.base(), self.threads):
            try:
                self.run_phase(place, job)
            except PhaseFailed as error:
                if place.phase != "analyze":
                    raise
                logger.warning("%s", error)
                failed = (place, error)
            if self.config.keep == "needed":
                retention.let_go(self.run)
            if (place.iteration, place.phase) == (1, "evaluate"):
                self.obey_verdict(place)
        if failed:
            self.note("running", failed[0])
            raise PhaseFailed(f"Everything but an analysis is done. {failed[1]}")

    def obey_verdict(self, place: PhaseDir) -> None:
        """Stop where SFT 1 is below the base and the config asks for it: once, so that a resumed run goes on.

        Raises:
            Stopped: saying why.
        """
        verdict = read_json(place.result)["summary"].get("go_no_go")
        if not (self.config.stop_if_worse and verdict and verdict["is_worse"]) or self.run.no_go.exists():
            return
        write_json(self.run.no_go, verdict)
        raise Stopped(
            f"Stopped after iteration 1, as stop_if_worse asks: {verdict['text']} Try a lower sft.learning_rate, more "
            f"train questions or another model, or go on in spite of it: workbench resume {self.run.run_id}"
        )

    def base(self) -> str:
        """The base model's directory, fetched from the hub if need be; what it is goes into the config."""
        written = read_json(self.run.config)
        if "base" not in written:
            path = stopping.aside(self.fetch_base)
            if "merge" in methods.PHASES[self.config.method]:
                check_base(path)
            found = checkpoints.describe(path)
            base = {"path": str(path), "num_parameters": found.num_parameters, "bytes": found.bytes}
            write_json(self.run.config, written | {"base": base})
        return read_json(self.run.config)["base"]["path"]

    def fetch_base(self) -> Path:
        """The base model's directory, after a download or a merge where it is not there."""
        if checkpoints.is_removed(Path(self.config.model)):
            from workbench.merging.files import restore

            restore(Path(self.config.model))
        return checkpoints.resolve_model(self.config.model, trust_remote_code=self.config.trust_remote_code)

    def run_phase(self, place: PhaseDir, job: Section) -> None:
        """Run one phase in a process of its own and wait for it, recording what it reports.

        Raises:
            PhaseFailed: it ended without its result.
        """
        if place.result.exists():
            return
        write_json(place.job, job.model_dump(mode="json"))
        self.note("running", place)
        logger.info("iteration %d: %s", place.iteration, place.phase)
        if twin := find_twin(self.run, place, self.config.group):
            logger.info("the same as in %s, taken from there", twin.run_id)
            adopt(twin, self.run, place)
            self.record()
            return
        process = self.warm_process(place) if place.phase in WARM else self.own_process(place, job)
        try:
            since = time.monotonic()
            while process.poll() is None and not (process is self.warm and place.result.exists()):
                ended_within(process, POLL_S)
                if time.monotonic() - since > RECORD_EVERY_S:
                    self.record()
                    since = time.monotonic()
        finally:
            if process is not self.warm:
                end(process)
        self.record()
        stopping.look()  # the signal may have been for both
        if process.returncode or not place.result.exists():
            raise PhaseFailed(explain(place, process.returncode, self.run.run_id))

    def own_process(self, place: PhaseDir, job: Section) -> subprocess.Popen:
        """Start a phase in a process of its own, with what memory a warm engine can give back."""
        if self.warm is not None and self.warm.poll() is None:
            self.rest_warm()
        with place.log.open("ab") as log:
            return subprocess.Popen(
                phase_command(place, job),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=phase_environment(job, self.threads),
            )

    def warm_process(self, place: PhaseDir) -> subprocess.Popen:
        """Hand a phase to the process whose engine is warm, started where there is none."""
        if self.warm is None or self.warm.poll() is not None:
            with place.log.open("ab") as log:
                self.warm = subprocess.Popen(
                    [sys.executable, "-m", "workbench.phases.warm", str(self.run.path)],
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=phase_environment(None, self.threads),
                )
        self.tell_warm(str(place.path))
        return self.warm

    def tell_warm(self, line: str) -> None:
        """Write a line to the warm process; one that has just died is noticed by whoever waits for it."""
        with contextlib.suppress(BrokenPipeError):
            self.warm.stdin.write(f"{line}\n".encode())
            self.warm.stdin.flush()

    def rest_warm(self) -> None:
        """Have the warm engine let go of its memory, and wait until it has: whoever comes next needs it."""
        asked, since = self.run.path / ".rest", time.monotonic()
        asked.touch()
        self.tell_warm("rest")
        while asked.exists() and not ended_within(self.warm, POLL_S):
            if time.monotonic() - since > REST_S:
                logger.warning("the engine has not let go of its memory within %d s; going on", REST_S)
                return

    def end_warm(self) -> None:
        """End the warm process: it ends by itself when nobody can ask it for more."""
        if self.warm is None:
            return
        with contextlib.suppress(BrokenPipeError):
            self.warm.stdin.close()
        try:
            if sys.exc_info()[0] is None:
                ended_within(self.warm, 10)
        finally:
            end(self.warm)

    def where(self) -> PhaseDir | None:
        """The phase that the status file names."""
        status = read_json(self.run.status)
        return self.run.phase(status["iteration"], status["phase"]) if status["phase"] else None

    def note(self, status: str, place: PhaseDir | None = None, error: str | None = None) -> None:
        """Write the run's status, and record it."""
        before = read_json(self.run.status)
        if status in ENDED:
            stopping.end()
        elif before and before["status"] == "stopping":  # asked for in the moment in which another phase begins
            stopping.ask()
        stopping.look()
        since = before["since"] if before and before["status"] == status else time.time()
        about = {"iteration": place.iteration, "phase": place.phase} if place else {"iteration": None, "phase": None}
        said = {"status": status, "since": since} | about | {"error": redacted(error) if error else None}
        disk.write_status(self.run.status, said)
        self.record()
        if status in ENDED and last_status(self.run)["status"] == "stopping":
            disk.write_status(self.run.status, said)  # asked for in the moment in which it ended

    def record(self) -> None:
        """Bring the store up to date; somebody who holds its file open only delays this.

        A supervisor that was killed is replaced on the way.
        """
        queueing.ensure(self.root)
        with contextlib.suppress(OSError):
            os.utime(self.run.process)  # so another machine knows that it lives
        try:
            self.offsets = store.ingest(store_path(self.root), self.run, self.offsets)
        except store.StoreBusy as error:
            logger.warning("%s; trying again later", error)
            if disk.is_full(error) and read_json(self.run.status)["status"] == "running":
                raise


def main() -> int:
    """Run the run directory named on the command line; at most one runner per run."""
    redact_output()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    stopping.listen()
    run = RunDir(Path(sys.argv[1]).absolute())
    lock = FileLock(run.path / ".runner.lock")
    try:
        lock.acquire(timeout=START_S)  # who was killed to resume it may take a moment to be gone
    except Timeout:
        logger.warning("%s already has a runner (%s)", run.run_id, observed_status(run)[0])
        return 1

    if read_json(run.config)["config"].get("on") == "ray":
        from workbench.cluster.follower import Follower  # ray

        return Follower(run).main()
    return Runner(run).main()


if __name__ == "__main__":
    stopping.leave(main)
