"""Detached processes that outlive whoever started them, known by pid and start time."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import psutil

from workbench.rundir import read_json, write_json

MARK = "WORKBENCH_PLACE"
"""In the environment of every process of a place: the place's directory."""
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


def start_detached(module: str, place: Workplace, changes: Mapping[str, str | None] | None = None) -> None:
    """Start `python -m module DIRECTORY` in a session of its own, writing to the place's log.

    `changes` are made to its environment; a variable that is null is taken out.
    """
    environment = os.environ | {MARK: str(place.path)} | (changes or {})
    with place.log.open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", module, str(place.path)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=place.path,
            env={name: value for name, value in environment.items() if value is not None},
            start_new_session=True,
        )
    record_process(place, process.pid)
    threading.Thread(target=process.wait, daemon=True).start()  # takes note of its end: no zombie stays


def record_process(place: Workplace, pid: int, *, follows: bool = False) -> None:
    """Note which process works here: a pid alone may be reused, with its start time it is not.

    One that `follows` writes none of the files here but this one, which it touches while it lives.
    """
    try:
        about = {"create_time": psutil.Process(pid).create_time(), "ticks": _ticks(pid)}
    except (psutil.NoSuchProcess, OSError):
        about = {"create_time": 0.0, "ticks": 0}
    write_json(
        place.process, {"pid": pid} | about | {"host": socket.gethostname()} | ({"follows": True} if follows else {})
    )


def _ticks(pid: int) -> int:
    """When a process began, in ticks since the machine did: nobody moves that by setting the clock."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def is_alive(place: Workplace) -> bool:
    """Whether the process that works here is there."""
    process = read_json(place.process)
    if process is None or process["host"] == socket.gethostname():
        return process is not None and is_alive_here(place)
    newest = 0.0
    for path in [place.process] if process.get("follows") else place.path.rglob("*.json*"):
        with suppress(FileNotFoundError):  # moved into place meanwhile
            newest = max(newest, path.stat().st_mtime)
    return time.time() - newest < STALE_AFTER_S


def is_alive_here(place: Workplace) -> bool:
    """Whether the process that works here is there, and on this machine."""
    process = read_json(place.process)
    if process is None or process["host"] != socket.gethostname():
        return False
    try:
        found = psutil.Process(process["pid"])
        if "ticks" in process:
            same = _ticks(found.pid) == process["ticks"]
        else:  # written by an earlier version
            same = abs(found.create_time() - process["create_time"]) < 1
        return same and found.status() != psutil.STATUS_ZOMBIE
    except (psutil.NoSuchProcess, OSError):
        return False


def end_group(place: Workplace, timeout_s: float) -> list[int]:
    """Ask the process to end; after `timeout_s` terminate and then kill everything it started. Pids that are left.

    Left is only what the system cannot kill at once, as a process that waits for a dead disk.
    """
    process = read_json(place.process)
    if process is None:
        return []
    if is_alive_here(place):
        with suppress(ProcessLookupError):
            os.kill(process["pid"], signal.SIGTERM)
    there = _gone_within(place, timeout_s)
    for number in (signal.SIGTERM, signal.SIGKILL):
        if there:
            signal_all(there, number)
            there = _gone_within(place, 3.0)
    return [process.pid for process in there]


def _gone_within(place: Workplace, seconds: float) -> list[psutil.Process]:
    """Wait for everything that belongs to a place to end; what has not."""
    deadline = time.monotonic() + seconds
    while (there := processes_of(place)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return there


def processes_of(place: Workplace) -> list[psutil.Process]:
    """Every living process of a place: the group of the one recorded, and what left the group but carries its mark.

    A launcher's workers leave the group, an engine's write over their mark. A group's number may come again, so the
    group counts only while one of it carries the mark.
    """
    recorded = read_json(place.process)
    if recorded is None or recorded["host"] != socket.gethostname():
        return []
    here, group, marked, marks_group = place.path.resolve(), [], [], False
    for process in psutil.process_iter():
        try:
            if process.status() == psutil.STATUS_ZOMBIE or process.pid == os.getpid():
                continue
            mark = process.environ().get(MARK)
            if mark and Path(mark).resolve() == here:  # the home may have been reached by a link
                marked.append(process)
                marks_group |= os.getpgid(process.pid) == recorded["pid"]
            elif os.getpgid(process.pid) == recorded["pid"]:
                group.append(process)
        except (psutil.Error, OSError):
            continue
    return [*marked, *(group if marks_group else [])]


def signal_all(processes: list[psutil.Process], number: int) -> None:
    """Send a signal to processes; those that have ended are passed over."""
    for process in processes:
        try:
            process.send_signal(number)
        except (psutil.Error, OSError):
            continue
