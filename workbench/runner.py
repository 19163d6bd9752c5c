"""One run, from its directory: phases in order, each a process; follow events, record, resume, stop.

Started detached by `launch.start_runner` as `python -m workbench.runner RUN_DIR`. Every phase whose
`result.json` is there is done and skipped, so running again is how a run resumes.
"""

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from filelock import FileLock, Timeout

from workbench import checkpoints, store
from workbench.config import RunConfig
from workbench.jobs import Section
from workbench.launch import observed_status
from workbench.place import spare_threads, take_place
from workbench.plan import plan
from workbench.processes import record_process
from workbench.rundir import ERROR, PhaseDir, RunDir, read_json, store_path, write_json

logger = logging.getLogger("workbench.runner")
RECORD_EVERY_S = 1.0
LOG_LINES = 12


class PhaseFailed(Exception):
    """A phase ended without its result."""


class Stopped(BaseException):
    """Somebody asked the run to stop. Not an `Exception`: nothing may swallow it."""


class Runner:
    """The process of one run."""

    def __init__(self, run: RunDir) -> None:
        self.run, self.root = run, run.path.parents[1]
        self.config = RunConfig.model_validate(read_json(run.config)["config"])
        self.threads = self.config.threads or spare_threads()
        self.offsets: dict[str, int] = {}

    def main(self) -> int:
        """Wait for a place, run every phase that is not done, record how it ended."""
        record_process(self.run, os.getpid())
        try:
            self.note("queued")
            with take_place(self.root, read_json(self.run.status)["since"], self.run.run_id):
                self.note("running")
                self.run_phases()
            self.note("done")
        except Stopped:
            self.note("stopped", self.where())
            return 0
        except PhaseFailed as error:
            self.note("failed", self.where(), str(error))
            return 1
        except Exception as error:
            logger.exception("the runner failed")
            self.note("failed", self.where(), f"{type(error).__name__}: {error}")
            return 1
        return 0

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
        if failed:
            self.note("running", failed[0])
            raise PhaseFailed(f"Everything but an analysis is done. {failed[1]}")

    def base(self) -> str:
        """The base model's directory, fetched from the hub if need be; what it is goes into the config."""
        written = read_json(self.run.config)
        if "base" not in written:
            path = checkpoints.resolve_model(self.config.model)
            found = checkpoints.describe(path)
            base = {"path": str(path), "num_parameters": found.num_parameters, "bytes": found.bytes}
            write_json(self.run.config, written | {"base": base})
        return read_json(self.run.config)["base"]["path"]

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
        with place.log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", f"workbench.phases.{place.phase}", str(place.path)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=phase_environment(self.threads),
            )
        try:
            while not ended_within(process, RECORD_EVERY_S):
                self.record()
        finally:
            end(process)
        self.record()
        if process.returncode or not place.result.exists():
            raise PhaseFailed(explain(place, process.returncode, self.run.run_id))

    def where(self) -> PhaseDir | None:
        """The phase that the status file names."""
        status = read_json(self.run.status)
        return self.run.phase(status["iteration"], status["phase"]) if status["phase"] else None

    def note(self, status: str, place: PhaseDir | None = None, error: str | None = None) -> None:
        """Write the run's status, and record it."""
        before = read_json(self.run.status)
        since = before["since"] if before and before["status"] == status else time.time()
        write_json(
            self.run.status,
            {
                "status": status,
                "since": since,
                "iteration": place.iteration if place else None,
                "phase": place.phase if place else None,
                "error": error,
            },
        )
        self.record()

    def record(self) -> None:
        """Bring the store up to date; somebody who holds its file open only delays this."""
        try:
            self.offsets = store.ingest(store_path(self.root), self.run, self.offsets)
        except store.StoreBusy as error:
            logger.warning("%s; trying again later", error)


def phase_environment(threads: int) -> dict[str, str]:
    """The environment of a phase: bounded threads, no progress bars in its log."""
    return os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }


def ended_within(process: subprocess.Popen, seconds: float) -> bool:
    """Wait for a child; whether it has ended."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def end(process: subprocess.Popen) -> None:
    """Terminate a child that is still there, insisting after 5 s."""
    if process.poll() is None:
        process.terminate()
        if not ended_within(process, 5):
            process.kill()
            process.wait()


def explain(place: PhaseDir, code: int, run_id: str) -> str:
    """Why a phase failed, in words: exit code or signal, the last log lines, what to do."""
    if code < 0:
        name = signal.Signals(-code).name
        reason = f"was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    else:
        reason = f"ended with exit code {code}" if code else "ended without a result"
    log = place.log.read_text(errors="replace").splitlines()[-LOG_LINES:]
    if log and log[-1].startswith(ERROR):
        log = log[-1:]
    return "\n".join(
        [
            f"Phase {place.phase} of iteration {place.iteration} {reason}.",
            *log,
            f"Once the cause is mended: workbench resume {run_id}  (whole log: {place.log})",
        ]
    )


def main() -> int:
    """Run the run directory named on the command line; at most one runner per run."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    run = RunDir(Path(sys.argv[1]).absolute())
    lock = FileLock(run.path / ".runner.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.warning("%s already has a runner (%s)", run.run_id, observed_status(run)[0])
        return 1

    def stop(number: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Stopped

    signal.signal(signal.SIGTERM, stop)
    return Runner(run).main()


if __name__ == "__main__":
    sys.exit(main())
