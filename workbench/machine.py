"""What this machine has for a run: GPUs, memory, disk. Asks the driver, and imports no torch."""

import os
import re
import shutil
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import psutil
import pynvml

from workbench.config import SftConfig

PEAK_TFLOPS = {
    "B200": 2250, "H200": 989, "H100": 989, "A100": 312, "L40S": 362, "L4": 121, "A10": 125, "A6000": 155,
    "4090": 165, "3090": 71, "V100": 125,
}  # fmt: skip
"""Dense 16-bit peak by a part of the GPU's name, from the makers' data sheets."""
ASSUMED_GPU, ASSUMED_TFLOPS = "A100", 312


@dataclass(frozen=True)
class Gpu:
    """One GPU as its driver describes it."""

    name: str
    memory_gib: float


@dataclass(frozen=True)
class Machine:
    """What a run could use."""

    gpus: tuple[Gpu, ...]
    memory_gib: float
    """Of the host, free now."""
    disk_gb: float
    """Free where runs are written."""

    @property
    def peak(self) -> tuple[str, float]:
        """The kind of GPU that hours are reckoned for, and its peak in TFLOP/s; an A100 where there is none."""
        name = self.gpus[0].name if self.gpus else ""
        found = next((part for part in PEAK_TFLOPS if part in name), None)
        return (found, PEAK_TFLOPS[found]) if found else (ASSUMED_GPU, ASSUMED_TFLOPS)


def this_machine(root: Path) -> Machine:
    """The machine this process runs on; `root` is where runs go."""
    there = next(path for path in (root, *root.parents) if path.exists())
    return Machine(gpus(), psutil.virtual_memory().available / 2**30, shutil.disk_usage(there).free / 1e9)


def gpus() -> tuple[Gpu, ...]:
    """The CUDA GPUs that a process started here may use; none where there is no driver.

    As CUDA reads CUDA_VISIBLE_DEVICES, those before the first that is not there: -1 hides all.
    """
    visible, there = os.environ.get("CUDA_VISIBLE_DEVICES"), _all_gpus()
    if visible is None or not there:
        return there
    found = []
    for name in (part.strip() for part in visible.split(",")):
        if name.startswith(("GPU-", "MIG-")):
            found.append(there[0])
        elif name.isdecimal() and int(name) < len(there):
            found.append(there[int(name)])
        else:
            break
    return tuple(found)


def read_hosts(file: Path) -> dict[str, int]:
    """The machines in a DeepSpeed host file, and how many processes each takes.

    Raises:
        ValueError: no such file, a line that is none of "name slots=8", a name twice, or no machine.
    """
    if not file.is_file():
        raise ValueError(f"no host file {str(file)!r} here; sft.hostfile must name a DeepSpeed host file")
    found: dict[str, int] = {}
    for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        if not (text := line.strip()) or text.startswith("#"):
            continue
        match = re.match(r"(\S+)\s+slots=(\d+)", text)
        if not match or int(match[2]) < 1 or match[1] in found:
            raise ValueError(f'{file}, line {number}: each line must be "name slots=8", no name twice; got {text!r}')
        found[match[1]] = int(match[2])
    if not found:
        raise ValueError(f'{file} names no machine; each line must be "name slots=8"')
    return found


def hosts(hostfile: str | None) -> dict[str, int]:
    """The machines of a host file and the processes of each; none where the file is not here, or is none."""
    try:
        return read_hosts(Path(hostfile)) if hostfile else {}
    except ValueError:
        return {}


def processes_of(sft: SftConfig, gpus: int) -> tuple[int, int]:
    """How many processes train: in all, and on one machine."""
    if not sft.zero:
        return 1, 1
    there = hosts(sft.hostfile)
    slots = [sft.processes or count for count in there.values()] or [sft.processes or gpus or 1]
    return sum(slots), max(slots)


def gpu_ids() -> tuple[str, ...]:
    """The GPUs that a process started here may use, as `CUDA_VISIBLE_DEVICES` names them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return tuple(str(number) for number in range(len(_all_gpus())))
    return tuple(name.strip() for name in visible.split(","))[: len(gpus())]


@lru_cache
def cpu_has_bf16() -> bool:
    """Whether this CPU has instructions for bf16; one that has none takes several times as long for it as for fp32.

    Linux is asked; where there is none, no.
    """
    try:
        words = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    except OSError:
        return False
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(words)


@lru_cache
def _all_gpus() -> tuple[Gpu, ...]:
    """Those that the driver knows."""
    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(number) for number in range(pynvml.nvmlDeviceGetCount())]
        found = [(pynvml.nvmlDeviceGetName(h), pynvml.nvmlDeviceGetMemoryInfo(h).total / 2**30) for h in handles]
    except pynvml.NVMLError:
        return ()
    return tuple(Gpu(name, memory) for name, memory in found)


def gpu_holders() -> set[int]:
    """The pids that have memory on a GPU, as the driver knows them; empty where there is none."""
    found = set()
    try:
        pynvml.nvmlInit()
        for number in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(number)
            found |= {process.pid for process in pynvml.nvmlDeviceGetComputeRunningProcesses(handle)}
    except pynvml.NVMLError:
        return set()
    return found
