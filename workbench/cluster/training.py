"""Fine-tuning on the cluster: Ray Train starts the processes of phase `sft` on its nodes, as torchrun does on one.

They train with the same code and the same DeepSpeed settings. Where a node is lost Ray Train starts them again, and
they go on from the last optimizer checkpoint, which needs a home that all nodes see. Several nodes with GPUs were
not run yet.
"""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray import train
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from workbench.cluster import here
from workbench.cluster.connection import connect, gpus
from workbench.cluster.relay import relayed, sender
from workbench.cluster.storage import cache_folder, fetch_into, publish, publish_for_nodes, seen_from_here
from workbench.events import Emit
from workbench.jobs import SftJob
from workbench.phases.training_data import Example
from workbench.rundir import PhaseDir, read_json, write_json

LOST_NODES = 3
"""Times that training is started again after a worker was lost, with its node or for want of memory."""
OF_A_GROUP = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "NODE_RANK", "ACCELERATE_TORCH_DEVICE")
"""What Ray Train tells a process of its group; a process that trains alone is told nothing, as on one machine."""


def fine_tune_on_nodes(job: SftJob, place: PhaseDir, emit: Emit, examples: Sequence[Example]) -> dict[str, Any]:
    """As `phases.sft.fine_tune`, on the cluster.

    Raises:
        ValueError: what a worker refused.
    """
    connect()
    cluster, there = here(), gpus()
    publish_for_nodes(Path(job.start.path))
    notes = place.path / ".ray"
    shutil.rmtree(notes, ignore_errors=True)  # Ray's own, of an attempt that was cut off: the progress is elsewhere
    wanted = cluster.workers or job.sft.processes or there or 1
    with relayed(emit) as mailbox:
        about = {
            "job": job.model_dump(mode="json"),
            "place": str(place.path),
            "storage": cluster.storage,
            "examples": ray.put(list(examples)),
            "mailbox": mailbox,
        }
        TorchTrainer(
            _train,
            train_loop_config=about,
            torch_config=TorchConfig(backend="nccl" if there else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=wanted if job.sft.zero else 1,
                use_gpu=bool(there),
                resources_per_worker={"CPU": 1 if there else job.threads} | ({"GPU": 1} if there else {}),
            ),
            run_config=RunConfig(
                name="train",
                storage_path=str(notes),
                failure_config=FailureConfig(max_failures=LOST_NODES),
            ),
        ).fit()
        result = ray.get(mailbox.result.remote())
    shutil.rmtree(notes, ignore_errors=True)
    if "refused" in result:
        raise ValueError(result["refused"])
    if cluster.storage:
        for name in made_by(job):
            fetch_into(place.path / name, f"{result['written']}/{name}", cluster.storage)
        if job.sft.lora:  # trained on the node's own copy of the start
            config = place.path / "adapter" / "adapter_config.json"
            write_json(config, read_json(config) | {"base_model_name_or_path": job.start.path})
    return result["trained"]


def _train(about: dict[str, Any]) -> None:
    """In each worker: train, and the first one says what came of it."""
    job, mailbox = SftJob.model_validate(about["job"]), about["mailbox"]
    is_first = train.get_context().get_world_rank() == 0
    if not job.sft.zero:
        for name in OF_A_GROUP:
            os.environ.pop(name, None)
    if not ray.get_gpu_ids():
        os.environ["DS_ACCELERATOR"] = "cpu"
    from workbench.phases import sft  # after the environment is as it must be
    from workbench.phases.process import silent

    emit = sender(mailbox) if is_first else silent
    try:
        with _folder(about) as folder:
            if about["storage"]:
                start = job.start.model_copy(update={"path": str(seen_from_here(job.start.path, about["storage"]))})
                job = job.model_copy(update={"start": start})
            place = PhaseDir(folder, job.iteration, "sft")
            trained = sft.fine_tune(job, place, emit, ray.get(about["examples"]))
            if is_first and about["storage"]:
                for name in made_by(job):
                    publish(folder / name, about["storage"])
    except ValueError as error:  # asked again it would say the same
        ray.get(mailbox.set_result.remote({"refused": str(error)}))
        return
    if is_first:
        ray.get(mailbox.set_result.remote({"trained": trained, "written": str(folder)}))


def made_by(job: SftJob) -> tuple[str, ...]:
    """The directories that training leaves."""
    return ("checkpoint", "adapter") if job.sft.lora else ("checkpoint",)


@contextmanager
def _folder(about: dict[str, Any]) -> Iterator[Path]:
    """Where a worker trains: in the phase's directory, or where that is not shared in an empty one of its own."""
    if not about["storage"]:
        yield Path(about["place"])
        return
    worker = f"{ray.get_runtime_context().get_actor_id()}"
    folder = cache_folder() / "training" / worker
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
