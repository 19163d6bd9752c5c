"""Detached processes that outlive whoever started them, known by pid and start time."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Protocol

import psutil

from workbench.rundir import read_json, write_json

STALE_AFTER_S = 30.0
"""Work on another machine whose files have not changed for so long counts as gone."""


class Workplace(Protocol):
    """A directory that one process works in: of a run, or of a lab."""

    @property
    def path(self) -> Path: ...
    @property
    def process(self) -> Path: ...
    @property
    def log(self) -> Path: ...


def start_detached(module: str, place: Workplace) -> None:
    """Start `python -m module DIRECTORY` in a session of its own, writing to the place's log."""
    with place.log.open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", module, str(place.path)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=place.path,
            start_new_session=True,
        )
    record_process(place, process.pid)
    threading.Thread(target=process.wait, daemon=True).start()  # takes note of its end: no zombie stays


def record_process(place: Workplace, pid: int) -> None:
    """Note which process works here: a pid alone may be reused, with its start time it is not."""
    try:
        started = psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        started = 0.0
    write_json(place.process, {"pid": pid, "create_time": started, "host": socket.gethostname()})


def is_alive(place: Workplace) -> bool:
    """Whether the process that works here is there."""
    process = read_json(place.process)
    if process is None:
        return False
    if process["host"] != socket.gethostname():
        newest = max((path.stat().st_mtime for path in place.path.rglob("*.json*")), default=0.0)
        return time.time() - newest < STALE_AFTER_S
    try:
        found = psutil.Process(process["pid"])
        same = abs(found.create_time() - process["create_time"]) < 1
        return same and found.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def end_group(place: Workplace, timeout_s: float) -> None:
    """Ask the process to end, and after `timeout_s` end its whole group."""
    process = read_json(place.process)
    if process is None:
        return
    group = process["pid"]
    if is_alive(place):
        os.kill(group, signal.SIGTERM)
    deadline = time.time() + timeout_s
    while time.time() < deadline and _group_members(group):
        time.sleep(0.1)
    signal_group(group, signal.SIGKILL)


def _group_members(group: int) -> list[psutil.Process]:
    """The living processes of a process group."""
    members = []
    for process in psutil.process_iter(["status"]):
        try:
            if process.info["status"] != psutil.STATUS_ZOMBIE and os.getpgid(process.pid) == group:
                members.append(process)
        except ProcessLookupError:
            continue
    return members


def signal_group(group: int, number: int) -> None:
    """Signal every process of a group that runs one of our modules."""
    for process in _group_members(group):
        try:
            if any("workbench." in part for part in process.cmdline()):
                os.kill(process.pid, number)
        except (psutil.NoSuchProcess, ProcessLookupError):
            continue
