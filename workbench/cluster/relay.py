"""Events from wherever a phase's work is done to the phase's process, which alone writes them down."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from workbench.events import Emit

EVERY_S = 0.5


@ray.remote(num_cpus=0, max_restarts=0)
class Mailbox:
    """What workers have said and nobody has fetched yet."""

    def __init__(self) -> None:
        self.waiting: list[tuple[tuple, dict[str, Any]]] = []
        self.said: dict[str, Any] = {}

    def put(self, args: tuple, data: dict[str, Any]) -> None:
        self.waiting.append((args, data))

    def take(self) -> list[tuple[tuple, dict[str, Any]]]:
        taken, self.waiting = self.waiting, []
        return taken

    def set_result(self, result: dict[str, Any]) -> None:
        self.said = result

    def result(self) -> dict[str, Any]:
        """What came of the work."""
        return self.said


def sender(mailbox: Any) -> Emit:
    """An `Emit` for a worker; it waits until its word is there, so that none is lost when the worker ends."""

    def emit(name: str, value: float | None = None, step: int = 0, **data: Any) -> None:
        ray.get(mailbox.put.remote((name, value, step), data))

    return emit


@contextmanager
def relayed(emit: Emit) -> Iterator[Any]:
    """A mailbox whose events are emitted here until the work is over, and then the last ones.

    It lives on this process's node: a worker's node may be lost without it.
    """
    here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(), soft=False
    )
    problems: list[Exception] = []
    mailbox, over = Mailbox.options(scheduling_strategy=here).remote(), threading.Event()

    def fetch() -> None:
        for args, data in ray.get(mailbox.take.remote()):
            emit(*args, **data)

    def follow() -> None:
        try:
            while not over.wait(EVERY_S):
                fetch()
        except Exception as error:  # a full disk: raised where the work ends
            problems.append(error)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield mailbox
        over.set()
        thread.join()
        if problems:
            raise problems[0]
        fetch()
    finally:
        over.set()
        ray.kill(mailbox)
