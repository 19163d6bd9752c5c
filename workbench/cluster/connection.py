"""This process on the cluster that it is a job of, and what the cluster has."""

import logging
import os
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayTaskError

from workbench.cluster import GPUS
from workbench.config import EngineConfig

logger = logging.getLogger(__name__)


def connect() -> None:
    """Join the cluster; what is created from here on ends with this process."""
    if not ray.is_initialized():
        ray.init(address=os.environ.get("RAY_ADDRESS", "auto"), log_to_driver=False, logging_level=logging.WARNING)


@dataclass(frozen=True)
class Node:
    """A living node."""

    node_id: str
    address: str
    cpus: int
    gpus: int


def nodes() -> list[Node]:
    """The living nodes, in an order that stays."""
    connect()
    found = [
        Node(n["NodeID"], n["NodeManagerAddress"], int(n["Resources"].get("CPU", 0)), int(n["Resources"].get("GPU", 0)))
        for n in ray.nodes()
        if n["Alive"]
    ]
    return sorted(found, key=lambda node: (node.address, node.node_id))


def count_gpus() -> int:
    """GPUs of the nodes that live now."""
    return sum(node.gpus for node in nodes())


def gpus() -> int:
    """GPUs of the cluster when the run began there: an autoscaler takes nodes away that have nothing to do."""
    return int(os.environ[GPUS])


def engine_resources(config: EngineConfig, threads: int) -> dict[str, float]:
    """What one copy of an engine takes of its node: GPUs where the cluster has any, else cores."""
    return {"num_gpus": config.tensor_parallel, "num_cpus": 1} if gpus() else {"num_gpus": 0, "num_cpus": threads}


def room_for(resources: dict[str, float]) -> int:
    """How many of a kind the nodes have room for, empty as they are between phases; at least one."""
    wanted = {"cpus": resources["num_cpus"], "gpus": resources["num_gpus"]}
    places = [min(int(getattr(node, kind) // amount) for kind, amount in wanted.items() if amount) for node in nodes()]
    return max(1, sum(places))


def result(ref: Any) -> Any:
    """What has come of a task or an actor's call; what was raised in it for people is raised here as it was.

    Raises:
        ValueError, OSError: as on the node.
    """
    try:
        return ray.get(ref)
    except RayTaskError as error:
        if isinstance(error.cause, ValueError | OSError):
            raise type(error.cause)(*error.cause.args) from error
        raise
