"""Fixtures shared by all tests: a home of one's own, and the smallest real run."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from filelock import FileLock

from workbench import launch
from workbench.config import RunConfig
from workbench.events import append_lines
from workbench.processes import end_group
from workbench.queueing import QueueDir
from workbench.rundir import RunDir, all_runs, find_run, last_status, read_json, store_path
from workbench.settings import build_config, load_settings

ROOT = Path(__file__).parents[1]
DATASETS = ROOT.parent / "shared" / "datasets"
needs_datasets = pytest.mark.skipif(not DATASETS.is_dir(), reason="the real data sets are not here")
CASES = ROOT.parent / "shared" / "cases"
needs_cases = pytest.mark.skipif(not CASES.is_dir(), reason="the inputs from public bug reports are not here")
SMALL = {
    "num_questions": 24,
    "eval_questions": 16,
    "iterations": 1,
    "threads": 1,
    "engine.batch_size": 24,
    "sample.max_new_tokens": 40,
    "evaluate.max_new_tokens": 40,
    "evaluate.num_samples": 4,
    "evaluate.sampled_questions": 4,
    "sft.save_every_steps": 2,
    "sft.batch_size": 4,
    "analyze.num_examples": 16,
}
"""A pocket run of one iteration that takes some seconds a phase."""


@pytest.fixture
def home(tmp_path, monkeypatch) -> Iterator[Path]:
    """An empty WORKBENCH_HOME; what still works in it at the end is ended."""
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path))
    yield tmp_path
    if (tmp_path / "queue").exists():
        end_group(QueueDir.of(tmp_path), 2.0)
    for run in all_runs(tmp_path):
        end_group(run, 0.0)


def small_config(**changes) -> RunConfig:
    """The pocket preset, made small."""
    return build_config(load_settings("pocket"), SMALL | changes)


def much_to_record(run: RunDir) -> None:
    """Notes of a run, so many and long that whoever records them writes into the store for seconds."""
    notes = ({"ts": 0.0, "name": "note", "step": n, "value": None, "text": f"{n} {'x' * 50_000}"} for n in range(2000))
    run.phase(0, "evaluate").path.mkdir(parents=True, exist_ok=True)
    append_lines(run.phase(0, "evaluate").events, notes)


def wait_for_writing(run: RunDir) -> None:
    """Wait until the run's process is in the middle of writing these."""
    wait_until(lambda: last_status(run)["phase"])
    recorder = psutil.Process(read_json(run.process)["pid"])
    store = str(store_path(run.path.parents[1]))
    wait_until(lambda: store in [file.path for file in recorder.open_files()])
    time.sleep(0.5)


def wait_until(condition, timeout_s: float = 600.0) -> None:
    """Wait for something to become true, and fail when it does not."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


def wait_for_end(root: Path, run_id: str, timeout_s: float = 600.0) -> tuple[str, str | None]:
    """Wait until a run has ended; its status and error."""
    run = find_run(root, run_id)
    wait_until(lambda: launch.observed_status(run)[0] in launch.ENDED and not launch.is_alive(run), timeout_s)
    return launch.observed_status(run)


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory) -> RunDir:
    """One real run of one small IMM iteration, made once for all tests in all of pytest's workers; do not change it."""
    shared = tmp_path_factory.getbasetemp()
    shared = shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared
    root = shared / "finished"
    with FileLock(shared / "finished.lock"), pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_HOME", str(root))
        if not all_runs(root):
            launch.launch(small_config(), root)
        (run,) = all_runs(root)
        assert wait_for_end(root, run.run_id) == ("done", None)
    return run
