"""Copies of an engine, each in a process with GPUs or cores of its own; they share the requests.

The seed of a request decides its sample, so how many copies there are changes no answer of an engine
that does not depend on company (vLLM); they are dealt out evenly and put together in order.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workbench.config import EngineConfig
from workbench.engines import Engine, Generation, Request, open_engine


class ReplicatedEngine(Engine):
    """`config.data_parallel` engines."""

    def __init__(self, checkpoint: Path, config: EngineConfig, threads: int, trust_remote_code: bool = False) -> None:
        copies, gpus = config.data_parallel, torch.cuda.device_count()
        if gpus and copies * config.tensor_parallel > gpus:
            raise ValueError(
                f"engine.data_parallel {copies} x engine.tensor_parallel {config.tensor_parallel} asks for "
                f"{copies * config.tensor_parallel} GPUs, and there are {gpus}"
            )
        one = config.model_copy(update={"data_parallel": 1})
        context = get_context("spawn")
        self.ends: list[Connection] = []
        self.processes = []
        for rank in range(copies):
            ours, theirs = context.Pipe()
            mine = max(1, threads // copies)
            about = (theirs, checkpoint, one, mine, trust_remote_code)
            process = context.Process(target=_serve, args=about, daemon=False)
            with _environment(rank, config.tensor_parallel, bool(gpus), mine):
                process.start()
            theirs.close()
            self.ends.append(ours)
            self.processes.append(process)
        try:
            self._gather()
        except ValueError:
            self.close()  # the copies that did start hold memory
            raise

    def generate(
        self, requests: Sequence[Request], *, max_new_tokens: int, stop: Sequence[str] = ()
    ) -> list[Generation]:
        """Continue each prompt; see `Engine.generate`. Prompts that are equal go to the same copy."""
        place = {prompt: i for i, prompt in enumerate(dict.fromkeys(request.prompt for request in requests))}
        shares: list[list[int]] = [[] for _ in self.ends]
        for number, request in enumerate(requests):
            shares[place[request.prompt] % len(shares)].append(number)
        options = {"max_new_tokens": max_new_tokens, "stop": tuple(stop)}
        for end, share in zip(self.ends, shares, strict=True):
            _send(end, ("generate", ([requests[number] for number in share],), options))
        made: dict[int, Generation] = {}
        for share, found in zip(shares, self._gather(), strict=True):
            made |= dict(zip(share, found, strict=True))
        return [made[number] for number in range(len(requests))]

    def load(self, checkpoint: Path) -> None:
        """Another checkpoint in every copy."""
        self._tell("load", checkpoint)

    def load_tensors(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Other weights in every copy; they are held in memory once more for each."""
        self._tell("load_tensors", list(tensors))

    def rest(self) -> bool:
        """Let training have the memory; copies that would have to be made anew are ended."""
        if all(self._tell("rest")):
            return True
        self.close()
        return False

    def close(self) -> None:
        """End every copy."""
        for end in self.ends:
            end.close()
        for process in self.processes:
            process.join(10)
            if process.is_alive():
                process.kill()

    def _tell(self, method: str, *arguments: Any) -> list[Any]:
        for end in self.ends:
            _send(end, (method, arguments, {}))
        return self._gather()

    def _gather(self) -> list[Any]:
        """One answer of each copy. All are received before any failure is raised: none waits for the next call.

        Raises:
            ValueError: a copy failed or died.
        """
        answers, problems = [], []
        for rank, end in enumerate(self.ends):
            try:
                error, answer = end.recv()
            except (EOFError, OSError):
                self.processes[rank].join(5)
                code = self.processes[rank].exitcode
                error, answer = f"died (exit code {code}); see the phase's log", None
            answers.append(answer)
            if error:
                problems.append(f"copy {rank} of the engine: {error}")
        if problems:
            raise ValueError("; ".join(problems))
        return answers


def _send(end: Connection, message: Any) -> None:
    """Ask a copy; that one has died is noticed where its answer is missing."""
    with suppress(OSError):
        end.send(message)


@contextmanager
def _environment(rank: int, width: int, on_gpu: bool, threads: int) -> Iterator[None]:
    """What a copy started here sees: its own GPUs, its own threads."""
    before = dict(os.environ)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if on_gpu:
        visible = before.get("CUDA_VISIBLE_DEVICES")
        names = visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(names[rank * width : (rank + 1) * width])
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _serve(end: Connection, checkpoint: Path, config: EngineConfig, threads: int, trust_remote_code: bool) -> None:
    """In a copy's process: do what is asked for until nobody asks any more."""
    engine = None
    while True:
        try:
            if engine is None:
                engine, answer = open_engine(checkpoint, config, threads, trust_remote_code), None
            else:
                method, arguments, options = end.recv()
                answer = getattr(engine, method)(*arguments, **options)
            end.send((None, answer))
        except EOFError:
            return
        except Exception as problem:  # whatever it is, whoever asked is told
            end.send((f"{type(problem).__name__}: {problem}", None))
            if engine is None:
                return
