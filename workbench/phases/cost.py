"""What a phase costs: seconds over all its attempts, peak memory, bytes written.

Memory of the host is resident memory (RSS) of this process and of those it started, pages of mapped files
among it. Two measures, the larger counts: the kernel's own peak of this process, which is set back when the
phase begins (`sample` and `evaluate` share a process, and each has its own peak), and a look at the whole
family every `EVERY_S`, for engines and trainings of several processes. Pages that these share count in each.
Memory of GPUs is what torch counts in this process, on all its GPUs together. That was not run on a GPU yet.
"""

import os
import re
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from workbench.events import Emit, attempts, read_lines
from workbench.rundir import PhaseDir

EVERY_S = 1.0
GIB = 2**30
PROC = Path("/proc/self")


class Meter:
    """Measures what happens inside `with`; a resumed phase's earlier attempts are added from its events."""

    def __init__(self, place: PhaseDir, emit: Emit) -> None:
        self.place, self.emit = place, emit
        self.family = _family()
        self.most = 0
        """Bytes of the whole family, at the worst moment that was seen."""
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Meter":
        self.emit("started", since=self._began())
        self.is_exact = reset_peak()
        _reset_gpu_peak()
        self.thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self.done.set()
        self.thread.join()
        self.most = max(self.most, resident(self.family), kernel_peak() if self.is_exact else 0)
        self.emit("ended")

    def _began(self) -> float:
        """When the phase was asked for: its job was written, or by hand a process was started on an old job."""
        return min(time.time(), max(self.place.job.stat().st_mtime, self.family.create_time()))

    def _watch(self) -> None:
        while not self.done.wait(EVERY_S):
            self.most = max(self.most, resident(self.family))

    def cost(self, summary: dict[str, Any]) -> dict[str, Any]:
        """The block `cost` of a result, once the work is done."""
        seconds = attempts(read_lines(self.place.events)[0])
        return {
            "seconds": sum(seconds),
            "attempts": len(seconds),
            "peak_memory_gib": self.most / GIB,
            "memory_source": "kernel and samples of RSS" if self.is_exact else "samples of RSS",
            "peak_gpu_gib": gpu_peak_gib(),
            "bytes_written": bytes_in(self.place),
            "num_tokens": summary.get("num_tokens"),
        }


def bytes_in(place: PhaseDir) -> int:
    """Size of what a phase left in its directory, over all its attempts; scratch that it deleted is not in it."""
    files = [path for path in place.path.rglob("*") if path.is_file() and path != place.job]
    return sum(path.stat().st_size for path in files)


def resident(family: psutil.Process) -> int:
    """Resident bytes of a process and of all it started."""
    total = 0
    for process in [family, *family.children(recursive=True)]:
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:  # it ended while we looked
            continue
    return total


def _family() -> psutil.Process:
    """This process; of several that train together, the launcher that began them."""
    mine = psutil.Process()
    return mine.parent() or mine if "LOCAL_RANK" in os.environ else mine


def reset_peak() -> bool:
    """Forget the peak of this process's resident memory so far; whether the system lets us (Linux, mostly)."""
    try:
        (PROC / "clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def kernel_peak() -> int:
    """Peak resident bytes of this process since its start or the last reset, as Linux counts them."""
    found = re.search(r"^VmHWM:\s+(\d+) kB", (PROC / "status").read_text(encoding="ascii"), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def _gpus() -> list[tuple[Any, int]]:
    """(torch.cuda, device) of each GPU that this process has opened; torch is not loaded for it."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return []
    return [(torch.cuda, device) for device in range(torch.cuda.device_count())]


def _reset_gpu_peak() -> None:
    for cuda, device in _gpus():
        cuda.reset_peak_memory_stats(device)


def gpu_peak_gib() -> float | None:
    """Most memory that torch had allocated on this process's GPUs, each at its own peak; None without one."""
    found = [cuda.max_memory_allocated(device) for cuda, device in _gpus()]
    return sum(found) / GIB if found else None
