"""Every path of a run, and the files that say how it stands. The files are the truth; the store is an index.

<home>/runs/<run_id>/
  config.json               the resolved config, versions, time of creation: all that is needed to run
  process.json              the runner's pid, its start time and host
  no_go.json                the verdict of iteration 1 that the run was stopped for; it is not stopped for it again
  status.json               queued, running, done, failed or stopped; since when; phase; error and cure
  runner.log                the runner's own words
  .reserve                  room for the last words of a run that has filled the disk
  iteration_<t>/<phase>/    t = 0 is the untouched base
    job.json                the phase's complete input
    events.jsonl            progress, as it happens
    solutions.jsonl         (sample) one row per sampled solution
    outcomes.jsonl          (evaluate) one row per checkpoint, task and question
    regrades.jsonl          one row per later grading of these: by which grader, what changed, the new scores
    checkpoint/             (sft, merge) the model directory
    phase.log               standard output and error
    result.json             put in place last: the phase is done
"""

import json
import os
import re
import secrets
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ERROR = "Error: "
"""Begins the last line of a phase's log when the cause of its failure is known in one sentence."""
PHASE_ORDER = ("sample", "sft", "merge", "evaluate", "analyze")
RUN_ID = re.compile(r"[a-z0-9][a-z0-9_.-]{0,99}")


def last_complete(scratch: Path) -> Path | None:
    """The newest optimizer checkpoint that was written to the end; the Trainer's state comes last."""
    done = [path.parent for path in scratch.glob("checkpoint-*/trainer_state.json") if _is_whole(path)]
    return max(done, key=lambda path: int(path.name.split("-")[1]), default=None)


def _is_whole(file: Path) -> bool:
    """Whether a JSON file was written to its end: a full disk or a kill may have cut it."""
    try:
        json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return True


def home() -> Path:
    """Where runs and store live: `WORKBENCH_HOME`, else `./data`."""
    return Path(os.environ.get("WORKBENCH_HOME", "data")).expanduser().absolute()


def store_path(root: Path) -> Path:
    """The DuckDB file of a home."""
    return root / "workbench.duckdb"


def write_json(path: Path, value: Any) -> None:
    """Write beside, then rename into place: readers see the old file or the new one, also after a power failure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with scratch.open("w", encoding="utf-8") as file:
            file.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    except OSError:
        scratch.unlink(missing_ok=True)  # on a full disk every byte counts
        raise


def flush(folder: Path) -> None:
    """Have every file below a directory on the disk itself: after a power failure a result still speaks for them."""
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError, IsADirectoryError), path.open("rb") as file:
            os.fsync(file.fileno())


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file, or None where there is no file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def last_status(run: "RunDir") -> dict[str, Any]:
    """How a run last said it stood; one that said nothing yet waits, one whose words were cut was at work."""
    about = {"since": 0.0, "iteration": None, "phase": None, "error": None}
    try:
        return read_json(run.status) or {"status": "queued"} | about
    except ValueError:  # a power failure leaves files empty
        return {"status": "running"} | about


@dataclass(frozen=True)
class PhaseDir:
    """The directory of one phase of one iteration."""

    path: Path
    iteration: int
    phase: str

    @property
    def job(self) -> Path:
        return self.path / "job.json"

    @property
    def events(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def solutions(self) -> Path:
        return self.path / "solutions.jsonl"

    @property
    def outcomes(self) -> Path:
        return self.path / "outcomes.jsonl"

    @property
    def regrades(self) -> Path:
        return self.path / "regrades.jsonl"

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint"

    @property
    def log(self) -> Path:
        return self.path / "phase.log"

    @property
    def result(self) -> Path:
        return self.path / "result.json"


@dataclass(frozen=True)
class RunDir:
    """The directory of one run."""

    path: Path

    @property
    def run_id(self) -> str:
        return self.path.name

    @property
    def config(self) -> Path:
        return self.path / "config.json"

    @property
    def process(self) -> Path:
        return self.path / "process.json"

    @property
    def status(self) -> Path:
        return self.path / "status.json"

    @property
    def no_go(self) -> Path:
        return self.path / "no_go.json"

    @property
    def log(self) -> Path:
        return self.path / "runner.log"

    def phase(self, iteration: int, phase: str) -> PhaseDir:
        """The directory of a phase; it need not exist."""
        return PhaseDir(self.path / f"iteration_{iteration}" / phase, iteration, phase)

    def phases(self) -> list[PhaseDir]:
        """The phases that were started, in the order in which a run goes through them."""
        jobs = [job.parent for job in self.path.glob("iteration_*/*/job.json")]
        found = [(int(p.parent.name.removeprefix("iteration_")), PHASE_ORDER.index(p.name)) for p in jobs]
        return [self.phase(iteration, PHASE_ORDER[index]) for iteration, index in sorted(found)]

    def checkpoint_id(self, iteration: int, kind: str) -> str:
        """The store's key of a checkpoint: kind is base, sft or merged."""
        return f"{self.run_id}/{iteration}/{kind}"


def find_run(root: Path, run_id: str) -> RunDir:
    """The run of that id.

    Raises:
        ValueError: not an id (never a path), or no such run.
    """
    run = RunDir(root / "runs" / run_id)
    if not RUN_ID.fullmatch(run_id) or not run.config.is_file():
        known = sorted(path.parent.name for path in (root / "runs").glob("*/config.json"))[-3:]
        hint = f"; the latest are {', '.join(known)}" if known else "; there are none yet"
        raise ValueError(f"no run {run_id!r} in {root / 'runs'}{hint}")
    return run


def all_runs(root: Path) -> list[RunDir]:
    """Every run of a home, oldest id first."""
    found = sorted((root / "runs").glob("*/config.json"))
    return [RunDir(path.parent) for path in found if RUN_ID.fullmatch(path.parent.name)]
