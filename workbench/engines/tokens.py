"""What the engines here have in common: the tokens of a prompt, and how many may follow it."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from workbench.checkpoints import read_object
from workbench.engines import Request

logger = logging.getLogger(__name__)
LONGEST_CONTEXT = 8192
"""Prompt and answer together, unless the config says more: vLLM's cache grows with it."""


def text_config(checkpoint: Path) -> dict[str, Any]:
    """The part of a model's config.json that is about text."""
    config = read_object(checkpoint / "config.json")
    return config.get("text_config", config)


def context_limit(checkpoint: Path, max_model_len: int | None) -> int:
    """Tokens of prompt and answer together: as the config says, else the model's own number up to 8192."""
    return max_model_len or min(text_config(checkpoint).get("max_position_embeddings", 2048), LONGEST_CONTEXT)


def tokenized(tokenizer: Any, requests: Sequence[Request]) -> list[list[int]]:
    """Token ids of the prompts; each text is tokenized once. An empty one is the token that texts begin with."""
    texts = list(dict.fromkeys((request.prompt, request.is_whole) for request in requests))
    start = [token for token in (tokenizer.bos_token_id, tokenizer.eos_token_id) if token is not None][:1]
    found: dict[tuple[str, bool], list[int]] = {}
    for whole in (False, True):
        if chosen := [key for key in texts if key[1] == whole]:
            rows = tokenizer([text for text, _ in chosen], add_special_tokens=not whole)["input_ids"]
            found |= {key: row or start for key, row in zip(chosen, rows, strict=True)}
    return [found[request.prompt, request.is_whole] for request in requests]


def room_behind(ids: Sequence[list[int]], limit: int, max_new_tokens: int) -> list[int]:
    """How many tokens may follow each prompt; 0 where a prompt fills the context, which gets no answer."""
    room = [max(0, min(max_new_tokens, limit - len(row))) if row else 0 for row in ids]
    if left_out := room.count(0):
        logger.warning("%d prompts are empty or fill the context of %d tokens: no answer", left_out, limit)
    return room
