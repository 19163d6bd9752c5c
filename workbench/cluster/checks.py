"""What a run needs of a cluster, looked at before anything is queued; each answer is a sentence with its cure."""

import json
import re
import secrets
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
from ray.job_submission import JobStatus

from workbench.cluster import probe
from workbench.cluster.client import ALIVE, client, entrypoint, last_lines
from workbench.config import RunConfig
from workbench.redact import redacted
from workbench.settings import NotHere

ANSWER_S = 5.0
PROBE_S = probe.ANSWER_S + 60.0
MISSING = re.compile("No module named|cannot import name|python: not found")
SHARED = "put WORKBENCH_HOME on a path that every node shares (NFS)"


def check_address(address: str) -> None:
    """Whether a cluster answers there.

    Raises:
        NotHere: nobody does.
    """
    try:
        if address != "auto":
            httpx.get(f"{address.rstrip('/')}/api/version", timeout=ANSWER_S).raise_for_status()
        client(address)
    except (httpx.HTTPError, httpx.InvalidURL, ConnectionError) as error:
        if address == "auto":
            raise NotHere(
                "no Ray cluster runs on this machine: start one with `ray start --head`, or set ray.address to the "
                "dashboard of another, as in http://head:8265"
            ) from error
        raise NotHere(
            f"no Ray dashboard answers at {address} ({type(error).__name__}); ray.address is that of the head node's "
            "dashboard, as in http://head:8265, and its port must be open from here"
        ) from error


def look_around(config: RunConfig, root: Path) -> list[str]:
    """Ask every node what it sees and has, by a job that takes no resources; what a person should know of it.

    Raises:
        ValueError: the first thing that would make the run fail there.
    """
    token = root / f".probe-{secrets.token_hex(4)}"
    token.touch()
    try:
        seen = _ask_the_nodes(config, token)
    except (ConnectionError, RuntimeError) as error:
        raise ValueError(f"the cluster at {config.ray.address} takes no job: {redacted(str(error))}") from error
    finally:
        token.unlink()
    if problem := next(problems(config, root, seen), None):
        raise ValueError(problem)
    so = {probe.LOST: "it is left out"}
    return [
        f"node {node['address']} of the cluster {node['why']}: {so.get(node['why'], 'nothing of it was looked at')}"
        for node in seen["silent"]
    ]


def problems(config: RunConfig, root: Path, seen: dict[str, Any]) -> Iterator[str]:
    """A sentence for each thing that the nodes lack; `seen` is what `cluster.probe` prints."""
    nodes, storage = seen["nodes"], config.ray.storage
    if not nodes:
        silent = "; ".join(f"{node['address']} {node['why']}" for node in seen["silent"])
        yield f"no node of the cluster answers ({silent or 'it has none'}): see `ray status` on its head"
        return
    blind = [node["address"] for node in nodes if not node["sees_home"]]
    if not seen["sees_home"]:
        yield f"the head node of the cluster does not see {root}: {SHARED}"
    elif blind and not storage:
        yield (
            f"node {blind[0]} of the cluster does not see {root}: {SHARED}, or set ray.storage to a URL that all "
            "reach, as in s3://bucket/folder"
        )
    for who, problem in [("the head node", seen["storage"]), *((f"node {n['address']}", n["storage"]) for n in nodes)]:
        if problem:
            yield (
                f"{who} cannot use ray.storage {storage!r} ({redacted(problem)}): install its fsspec package there, "
                "and put its keys into that node's environment"
            )
    yield from _different_versions(nodes)
    yield from _too_little(config, nodes)


def _different_versions(nodes: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Where nodes would compute other numbers."""
    first = nodes[0]
    for node in nodes[1:]:
        for name in probe.VERSIONS:
            pair = [n["versions"].get(name, "none") for n in (first, node)]
            if pair[0] != pair[1]:
                yield (
                    f"node {first['address']} has {name} {pair[0]} and node {node['address']} {pair[1]}: numbers would "
                    "differ; install the same on every node"
                )


def _too_little(config: RunConfig, nodes: Sequence[dict[str, Any]]) -> Iterator[str]:
    """What no node has, and all together have not."""
    most = {kind: max(node[kind] for node in nodes) for kind in ("gpus", "cpus")}
    total = {kind: sum(node[kind] for node in nodes) for kind in ("gpus", "cpus")}
    width, sft = config.engine.tensor_parallel, config.sft
    if width > max(most["gpus"], 1):
        yield (
            f"engine.tensor_parallel is {width}, and no node of the cluster has more than {most['gpus']} GPUs: lower "
            "it, or add a node that has them"
        )
    if config.gpus and config.gpus > total["gpus"]:
        yield f"gpus is {config.gpus}, and the cluster has {total['gpus']}: lower it, or add nodes with GPUs"
    threads = config.threads or min((node["cpus"] for node in nodes if node["cpus"]), default=1)
    if not total["gpus"] and threads > most["cpus"]:
        yield f"threads is {threads}, and no node of the cluster has more than {most['cpus']} cores: lower it"
    wanted = (config.ray.workers or sft.processes or 1) if sft.zero else 1
    room = total["gpus"] if total["gpus"] else sum(node["cpus"] // threads for node in nodes)
    if wanted > room:
        yield (
            f"fine-tuning asks for {wanted} workers (ray.workers, sft.processes), and the cluster has room for {room}"
            + ("" if total["gpus"] else f" of {threads} cores (threads)")
            + ": lower it, or add nodes"
        )


def _ask_the_nodes(config: RunConfig, token: Path) -> dict[str, Any]:
    jobs, address = client(config.ray.address), config.ray.address
    job = jobs.submit_job(
        entrypoint=entrypoint("workbench.cluster.probe", str(token), *filter(None, [config.ray.storage])),
        submission_id=f"probe.{secrets.token_hex(4)}",
    )
    deadline = time.monotonic() + PROBE_S
    while (status := jobs.get_job_status(job)) in ALIVE and time.monotonic() < deadline:
        time.sleep(0.3)
    said = last_lines(jobs, job)
    if status in ALIVE:
        jobs.stop_job(job)
        raise ValueError(f"the cluster at {address} has not looked around within {PROBE_S:.0f} s: is it busy?")
    seen = [line.removeprefix(probe.SEEN) for line in said.splitlines() if line.startswith(probe.SEEN)]
    if status == JobStatus.SUCCEEDED and seen:
        return json.loads(seen[-1])
    last = (said or jobs.get_job_info(job).message or f"job {job} ended as {status}").splitlines()[-1]
    raise ValueError(why_not(address, redacted(last)))


def why_not(address: str, said: str) -> str:
    """Why the nodes could not be asked, from the last words of the job that was to."""
    if MISSING.search(said):
        return (
            f"the cluster at {address} cannot run this workbench ({said}): install the same version on every node, "
            "under the same Python path or first in PATH"
        )
    return f"the cluster at {address} could not be looked at ({said}): see `ray status` on its head, and try again"
