"""The command and environment with which a phase's process is started."""

import os
import sys
from pathlib import Path

from workbench import cluster
from workbench.jobs import Section, SftJob
from workbench.machine import gpus, read_hosts
from workbench.rundir import PhaseDir


def phase_command(place: PhaseDir, job: Section) -> list[str]:
    """A phase is one process; training with ZeRO is one for each GPU, started by torchrun or, on several machines,
    by DeepSpeed's launcher; on a cluster Ray Train starts these where they are to run."""
    module = ["-m", f"workbench.phases.{place.phase}", str(place.path)]
    if not isinstance(job, SftJob) or not job.sft.zero or cluster.here():
        return [sys.executable, *module]
    if job.sft.hostfile:
        read_hosts(Path(job.sft.hostfile))  # without one, DeepSpeed would train on this machine and hardly say so
        slots = ["--num_gpus", str(job.sft.processes)] if job.sft.processes else []  # else the file's own
        launcher = ["-m", "deepspeed.launcher.runner", "--hostfile", job.sft.hostfile, *slots]
        return [sys.executable, *launcher, "--no_local_rank", "--module", *module[1:]]
    count = str(job.sft.processes or gpu_count() or 1)
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", count, *module]


def phase_environment(job: Section | None, threads: int) -> dict[str, str]:
    """Bounded threads, no progress bars in the log; what training needs to know of this machine."""
    found = os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    if isinstance(job, SftJob):
        if not gpu_count():
            found["DS_ACCELERATOR"] = "cpu"
        elif not job.sft.zero:  # else the Trainer would spread the batch over every GPU it sees
            found["CUDA_VISIBLE_DEVICES"] = found.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    return found


def gpu_count() -> int:
    """CUDA GPUs that a process started here may use."""
    return len(gpus())
