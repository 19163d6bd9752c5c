"""A full disk: knowing one, saying so in a sentence, and keeping the little room that it takes to say so."""

import contextlib
import errno
import re
import resource
import shutil
import sys
from pathlib import Path
from signal import SIGBUS
from typing import Any

import psutil

from workbench.rundir import write_json

ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
WORDS = re.compile(
    "No space left|Disk quota exceeded|File too large|no space for|PytorchStreamWriter|unexpected pos|file write failed"
)
"""What libraries say of it that keep the system's error to themselves (torch, safetensors, DuckDB)."""
EXIT_CODE = 28
"""A phase ends with it where the disk is full: its log may have had no room for the reason."""
RESERVED, RESERVE = ".reserve", 256 * 1024
LITTLE = 64 * 1024


def is_full(error: BaseException) -> bool:
    """Whether an error, or one that it came from, says that there is no room to write."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if (isinstance(error, OSError) and error.errno in ERRORS) or WORDS.search(str(error)):
            return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return False


def was_full(code: int, said: str, path: Path) -> bool:
    """Whether a process that ended with this code and these last words found no room to write under `path`."""
    broken = code in (1, 120, -SIGBUS) and shutil.disk_usage(path).free < LITTLE
    return code == EXIT_CODE or bool(WORDS.search(said)) or broken


def sentence(path: Path, then: str = "") -> str:
    """That there is no room, on which disk, what is free there, and what to do; `then` is said at the end."""
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if limit != resource.RLIM_INFINITY:
        where = f"No file under {path} may grow beyond {size(limit)} (ulimit -f): raise that limit"
    else:
        while not path.exists():
            path = path.parent
        usage, (device, mount) = shutil.disk_usage(path), mounted(path)
        where = (
            f"The disk {device} on {mount} is full: {size(usage.free)} of {size(usage.total)} are free. Make room "
            "(`workbench gc --dry-run` lists what can be made again)"
        )
    return f"{where}, then: {then}" if then else f"{where}, and try again."


def size(number: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KB", "MB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} GB"


def mounted(path: Path) -> tuple[str, str]:
    """(device, mount point) of the file system that a path is on."""
    path = path.resolve()
    found = [part for part in psutil.disk_partitions(all=True) if path.is_relative_to(part.mountpoint)]
    best = max(found, key=lambda part: len(part.mountpoint), default=None)
    return (best.device, best.mountpoint) if best else ("", path.anchor)


def reserve(folder: Path) -> None:
    """Keep some room in the directory of a run or lab, for its last words.

    Raises:
        OSError: there is none.
    """
    if not (folder / RESERVED).exists():
        try:
            (folder / RESERVED).write_bytes(b"\1" * RESERVE)
        except OSError:
            release(folder)
            raise


def release(folder: Path) -> None:
    """Give the room back."""
    (folder / RESERVED).unlink(missing_ok=True)


def write_status(file: Path, status: dict[str, Any]) -> None:
    """Say how a run or lab stands, on a full disk too: then in the room that was kept for it."""
    try:
        write_json(file, status)
    except OSError as error:
        if not is_full(error):
            raise
        release(file.parent)
        write_json(file, status)


def say(text: str) -> None:
    """A line on standard error, if there is room for it."""
    with contextlib.suppress(OSError):
        sys.stderr.write(text + "\n")
        sys.stderr.flush()
