"""The machine's one place for heavy work, taken in order of asking; a dead holder frees it."""

import os
import time
from collections.abc import Callable
from pathlib import Path

from filelock import AcquireReturnProxy, FileLock, Timeout

from workbench.processes import is_alive
from workbench.rundir import all_runs, read_json

POLL_S = 0.5


def take_place(
    root: Path, since: float, name: str = "", waiting: Callable[[], None] = lambda: None
) -> AcquireReturnProxy:
    """Wait until no run that was queued before `since` waits and the place is free; take it (a context manager).

    `name` is the run's id, which breaks ties; `waiting` is called at every look and may raise to give up.
    """
    (root / "runs").mkdir(parents=True, exist_ok=True)
    lock = FileLock(root / "runs" / ".place.lock")
    while True:
        if not runs_waiting(root, since, name):
            try:
                return lock.acquire(timeout=0)
            except Timeout:
                pass
        waiting()
        time.sleep(POLL_S)


def is_taken(root: Path) -> bool:
    """Whether somebody has the place."""
    try:
        FileLock(root / "runs" / ".place.lock").acquire(timeout=0).lock.release()
    except Timeout:
        return True
    return False


def runs_waiting(root: Path, since: float, name: str = "") -> bool:
    """Whether another live run was queued before."""
    for other in all_runs(root):
        status = read_json(other.status)
        waits = other.run_id != name and status and status["status"] == "queued"
        if waits and (status["since"], other.run_id) < (since, name) and is_alive(other):
            return True
    return False


def spare_threads() -> int:
    """All cores this process may use; from three on, one is left to the screen."""
    cores = len(os.sched_getaffinity(0))
    return cores if cores <= 2 else cores - 1
