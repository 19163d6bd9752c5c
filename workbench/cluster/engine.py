"""An engine whose copies are Ray actors on any nodes: each batch goes to whoever is free, in order it comes back.

A batch is what one copy answers alone, so how many copies there are, and which one a batch goes to, changes no
answer. A copy that is lost with its node costs its batch once more, nothing else.
"""

import logging
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import ObjectLostError, OutOfMemoryError, RayActorError
from torch import Tensor

from workbench.cluster import here
from workbench.cluster.connection import connect, engine_resources, result, room_for
from workbench.cluster.storage import publish_for_nodes, seen_from_here
from workbench.config import EngineConfig
from workbench.engines import WARM, Engine, Generation, Request, engine_kind

logger = logging.getLogger(__name__)
TRIES = 3
"""Copies that may be lost over one batch: one that kills whoever takes it would go round for ever."""
AHEAD = 2
"""Batches handed out or waiting to be yielded, per copy: answers wait for their turn in memory."""
SAY_EVERY_S = 60.0


@dataclass(frozen=True)
class Batch:
    """A list of requests on its way."""

    number: int
    requests: Sequence[Request]
    lost: int = 0


class Copy:
    """An engine on some node, that stays warm between calls; an actor.

    Not decorated as one: Ray would send the class by value, and with it this process's warm engine.
    """

    def ready(self) -> str:
        """Its node's address, as soon as it is there."""
        return ray.util.get_node_ip_address()

    def generate(
        self, checkpoint: str, settings: tuple, requests: list[Request], options: dict[str, Any]
    ) -> list[Generation]:
        config, threads, trust_remote_code, storage = settings
        engine = WARM.holding(seen_from_here(checkpoint, storage), config, threads, trust_remote_code)
        return engine.generate(requests, **options)


class RayEngine(Engine):
    """Copies of the engine that the config names, all over the cluster."""

    def __init__(self, checkpoint: Path, config: EngineConfig, threads: int, trust_remote_code: bool = False) -> None:
        connect()
        # One kind for all: a node without vLLM must not answer with transformers beside others.
        one = config.model_copy(update={"data_parallel": 1, "kind": engine_kind(config)})
        self.settings = (one, threads, trust_remote_code, here().storage)
        self.resources = engine_resources(one, threads)
        self.copies: list[Any] = []
        self.load(checkpoint)

    def load(self, checkpoint: Path) -> None:
        """Every copy takes it before its next batch."""
        publish_for_nodes(checkpoint)
        self.checkpoint = str(checkpoint)

    def load_tensors(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        raise NotImplementedError("copies on other machines take checkpoints; a sweep's points merge where they run")

    def generate(
        self, requests: Sequence[Request], *, max_new_tokens: int, stop: Sequence[str] = ()
    ) -> list[Generation]:
        return next(self.stream([requests], max_new_tokens=max_new_tokens, stop=stop))

    def stream(
        self, batches: Iterable[Sequence[Request]], *, max_new_tokens: int, stop: Sequence[str] = ()
    ) -> Iterator[list[Generation]]:
        """See `Engine.stream`. At most `AHEAD` batches per copy are under way or wait to be taken.

        Raises:
            ValueError: an engine refuses, or a batch was lost with its copy `TRIES` times.
        """
        while len(self.copies) < (here().replicas or room_for(self.resources)):
            self.copies.append(self._new_copy())
        options = {"max_new_tokens": max_new_tokens, "stop": tuple(stop)}
        yield from _Round(self, iter(batches), options).run()

    def rest(self) -> bool:
        """Give back the nodes' memory and their places; copies come again with the next batch."""
        for copy in self.copies:
            ray.kill(copy)
        self.copies = []
        return True

    def close(self) -> None:
        self.rest()

    def replace(self, copy: Any) -> Any:
        """A new copy in the place of a lost one, on whichever node has room."""
        ray.kill(copy)
        self.copies[self.copies.index(copy)] = fresh = self._new_copy()
        return fresh

    def _new_copy(self) -> Any:
        options = self.resources | {"max_restarts": 0, "max_task_retries": 0, "scheduling_strategy": "SPREAD"}
        return ray.remote(Copy).options(**options).remote()


class _Round:
    """One stream of batches over the copies of an engine."""

    def __init__(self, engine: RayEngine, batches: Iterator[Sequence[Request]], options: dict[str, Any]) -> None:
        self.engine, self.batches, self.options = engine, batches, options
        self.lost: deque[Batch] = deque()
        self.idle: list[Any] = []
        self.coming = {copy.ready.remote(): copy for copy in engine.copies}
        self.working: dict[Any, tuple[Any, Batch]] = {}
        self.made: dict[int, list[Generation]] = {}
        self.asked = self.given = self.stillborn = 0
        self.is_over = False
        """Every batch has been handed out once."""
        self.said_at = time.monotonic()

    def run(self) -> Iterator[list[Generation]]:
        """Each batch's answers, in order."""
        while True:
            self.hand_out()
            if self.is_over and not self.working and not self.lost:
                return
            for ref in ray.wait([*self.working, *self.coming], num_returns=1, timeout=5)[0]:
                self.take(ref)
            self.complain()
            while self.given in self.made:
                self.given += 1
                yield self.made.pop(self.given - 1)

    def hand_out(self) -> None:
        """A batch for every copy that is free; the lost ones first, they are waited for."""
        while self.idle and (batch := self.lost.popleft() if self.lost else self.next_fresh()):
            copy = self.idle.pop()
            ref = copy.generate.remote(self.engine.checkpoint, self.engine.settings, list(batch.requests), self.options)
            self.working[ref] = (copy, batch)

    def next_fresh(self) -> Batch | None:
        """The next batch that nobody had; none at the end, or where too many answers wait for their turn."""
        if self.asked - self.given >= AHEAD * len(self.engine.copies):
            return None
        requests = next(self.batches, None)
        if requests is None:
            self.is_over = True
            return None
        self.asked += 1
        return Batch(self.asked - 1, requests)

    def take(self, ref: Any) -> None:
        """What has come of a batch, or of a copy that was to begin."""
        copy, batch = self.working.pop(ref, (None, None))
        copy = copy or self.coming.pop(ref)
        try:
            answer = result(ref)
        except (RayActorError, ObjectLostError, OutOfMemoryError) as error:
            logger.warning("a copy of the engine is lost (%s); another takes its batch", type(error).__name__)
            fresh = self.engine.replace(copy)
            self.coming[fresh.ready.remote()] = fresh
            if batch is not None:
                self.requeue(batch)
            else:
                self.stillborn += 1
                if self.stillborn >= TRIES * len(self.engine.copies):
                    raise ValueError(f"copies of the engine end before they begin: {error}") from error
            return
        self.stillborn = 0
        if batch is not None:
            self.made[batch.number] = answer
        self.idle.append(copy)

    def requeue(self, batch: Batch) -> None:
        """Ask again for what was lost."""
        if batch.lost + 1 >= TRIES:
            raise ValueError(
                f"{TRIES} copies of the engine were lost over the same {len(batch.requests)} questions; their nodes' "
                "memory may be too small for them: lower engine.batch_size"
            )
        self.lost.append(Batch(batch.number, batch.requests, batch.lost + 1))

    def complain(self) -> None:
        """Say now and then that nothing happens because no node has room."""
        if self.working or time.monotonic() - self.said_at < SAY_EVERY_S:
            return
        self.said_at = time.monotonic()
        logger.warning("waiting for a node with room for a copy of the engine: %s", self.engine.resources)
