"""A model behind an OpenAI-compatible server: `vllm serve` on another machine, or a provider.

The key comes from the environment variable OPENAI_API_KEY and goes nowhere else: not into a config, an
event, a log or a message.
"""

import asyncio
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from openai import APIConnectionError, APIStatusError, AsyncOpenAI, AuthenticationError, NotFoundError, OpenAIError
from torch import Tensor

from workbench.config import TeacherConfig
from workbench.core.prompts import instruction_prompt, messages
from workbench.engines import NO_ANSWER, Engine, Generation, Request, Unfinished

logger = logging.getLogger(__name__)
NO_KEY = "none"
"""Sent where no key is set: servers of one's own want none, but the client wants a text."""
REFUSALS = (400, 413, 422)
"""HTTP status of a request that is too long, filtered or malformed."""
PLAIN = instruction_prompt("1 + 1?")
"""A question that nobody refuses."""


class Refused(Exception):
    """The server has no answer to this request, and would have none if asked again."""


class ServerEngine(Engine):
    """Asks a server; requests run side by side, and are tried again with growing pauses where that can help."""

    def __init__(self, config: TeacherConfig) -> None:
        self.config = config

    def generate(
        self, requests: Sequence[Request], *, max_new_tokens: int, stop: Sequence[str] = ()
    ) -> list[Generation]:
        """Continue each prompt; see `Engine.generate`. A request that the server refuses (too long, filtered) gets
        no answer, unless it refuses a plain question too.

        Raises:
            Unfinished: the server cannot be reached, does not know the model, refuses the key, or sends no JSON.
            ValueError: it refuses every request.
        """
        options = {"model": self.config.model, "max_tokens": max_new_tokens, "stop": list(stop) or None}
        return asyncio.run(self._all(requests, options))

    async def _all(self, requests: Sequence[Request], options: Mapping[str, Any]) -> list[Generation]:
        """All answers, in the order of the requests. After a failure for good nothing more is asked for."""
        free = asyncio.Semaphore(self.config.concurrency)
        broken: list[str] = []
        refused: list[str] = []

        async def one(request: Request) -> Generation | None:
            async with free:
                try:
                    return None if broken else await self._ask(client, request, options)
                except Refused as problem:
                    refused.append(str(problem))
                except (OpenAIError, ValueError) as problem:  # ValueError: broken JSON
                    broken.append(self._explain(problem))
                return None

        async with self._client() as client:
            made = await asyncio.gather(*map(one, requests))
            if broken:
                raise Unfinished(broken[0], made)
            if refused and not any(made):  # are these prompts to blame, or the settings?
                plain = replace(requests[0], prompt=PLAIN, turns=requests[0].turns and tuple(messages(PLAIN)))
                if await one(plain) is None:
                    raise ValueError((broken or refused)[-1])
        if refused:
            logger.warning("%d of %d requests were refused: %s", made.count(None), len(made), refused[0])
        return [answer or NO_ANSWER for answer in made]

    def _client(self) -> AsyncOpenAI:
        return AsyncOpenAI(
            base_url=self.config.url,
            api_key=os.environ.get("OPENAI_API_KEY") or NO_KEY,
            timeout=self.config.timeout_s,
            max_retries=self.config.retries,  # with exponential pauses, heeding Retry-After
        )

    async def _ask(self, client: AsyncOpenAI, request: Request, options: Mapping[str, Any]) -> Generation:
        """One answer, as a chat where the request is one, else as a plain continuation.

        Raises:
            Refused: the server refuses this request, or its answer has no text.
        """
        options = {**options, "temperature": request.temperature, "seed": request.seed % 2**31}
        try:
            if request.turns is not None:
                made = await client.chat.completions.create(messages=list(request.turns), **options)
            else:
                made = await client.completions.create(prompt=request.prompt, **options)
        except APIStatusError as error:
            if error.status_code in REFUSALS:
                raise Refused(self._explain(error)) from error
            raise
        if isinstance(made, str):  # whatever is not marked as JSON
            raise ValueError("no JSON")
        try:
            choice = made.choices[0]
            text = (choice.text if request.turns is None else choice.message.content) or ""
        except (AttributeError, IndexError, TypeError) as error:
            raise Refused(f"{self.config.url} answers without a text") from error
        tokens = made.usage.completion_tokens if made.usage else 0
        return Generation(text.strip(), tokens, choice.finish_reason == "stop")

    def _explain(self, error: Exception) -> str:
        """What went wrong, in one sentence; never with the key, which some servers send back."""
        said, key = " ".join(self._sentence(error).split()), os.environ.get("OPENAI_API_KEY")
        return (said.replace(key, "(the key)") if key else said)[:500]

    def _sentence(self, error: Exception) -> str:
        url, model = self.config.url, self.config.model
        if isinstance(error, AuthenticationError):
            return f"{url} refuses the key; set OPENAI_API_KEY before the queue's first run is launched"
        if isinstance(error, NotFoundError):
            return f"{url} does not know the model {model!r} (or not this path): set teacher.model to a name it lists"
        if isinstance(error, APIStatusError):
            text = str((error.body or {}).get("message", "")) if isinstance(error.body, dict) else ""
            return f"{url} answered with HTTP status {error.status_code} for model {model!r}: {text}"
        if isinstance(error, APIConnectionError):
            tries = f"{self.config.retries + 1} tries"
            return f"{url} cannot be reached, or gives no answer within {self.config.timeout_s:g} s ({tries})"
        if isinstance(error, ValueError):
            return f"{url} answers with something else than JSON; set teacher.url to the API's address, as in .../v1"
        return f"{url} failed: {type(error).__name__}"

    def load(self, checkpoint: Path) -> None:
        """A server's model is its own."""
        raise ValueError(f"the model behind {self.config.url} cannot be exchanged for {checkpoint}")

    def load_tensors(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """A server's model is its own."""
        raise ValueError(f"the model behind {self.config.url} cannot be exchanged")

    def rest(self) -> bool:
        """Nothing is held here."""
        return True

    def close(self) -> None:
        """Nothing is held here."""
