"""Texts as token ids with the place from which a model is to answer for them: what SFT learns and importance asks."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from workbench.core.prompts import Prompts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHIPPED_TEXT = Path(__file__).parents[1] / "data" / "pocket" / "text.txt"


@dataclass(frozen=True)
class Example:
    """Token ids; those from `first` on carry the loss."""

    ids: list[int]
    first: int


def answers(tokenizer: "PreTrainedTokenizerBase", pairs: Sequence[tuple[str, str]], prompts: Prompts) -> list[Example]:
    """(question, solution) pairs as prompt and response; loss on the response and the end-of-text token."""
    if not pairs:
        return []
    end = [tokenizer.eos_token_id]
    asked = tokenizer([prompts.prompt(question) for question, _ in pairs], add_special_tokens=not prompts.is_whole)
    said = tokenizer([prompts.response(solution) for _, solution in pairs], add_special_tokens=False)
    return [
        Example(prompt + answer + end, len(prompt))
        for prompt, answer in zip(asked["input_ids"], said["input_ids"], strict=True)
    ]


def plain_texts(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str], max_length: int) -> list[Example]:
    """Texts as they are, cut after `max_length` tokens; loss on every token but the first."""
    ids = tokenizer(list(texts))["input_ids"] if texts else []
    return [Example(row[:max_length], 1) for row in ids if len(row) > 1]


def drawn(items: Sequence, count: int, seed: int) -> list:
    """`count` of the items, or all, in an order fixed by the seed."""
    return random.Random(seed).sample(list(items), min(count, len(items)))


def check_text(source: str) -> bool:
    """Whether a text is a local file; else it is a hub text set, owner/name or owner/name:config.

    Raises:
        ValueError: neither.
    """
    if Path(source).expanduser().is_file():
        return True
    if source.count("/") == 1 and not source.startswith((".", "~", "/")):
        return False
    raise ValueError(f"no text file {source!r}; give a file with blank lines between paragraphs, or a hub text set")


def read_paragraphs(source: str) -> list[str]:
    """The paragraphs of a text; see `check_text` for what it may be.

    Raises:
        ValueError: no such text, nothing in it, or the hub cannot be reached.
    """
    if check_text(source):
        text = Path(source).expanduser().read_text(encoding="utf-8", errors="replace")
        paragraphs = [" ".join(part.split()) for part in text.split("\n\n")]
    else:
        paragraphs = _hub_texts(source)
    if not (found := [paragraph for paragraph in paragraphs if paragraph.strip()]):
        raise ValueError(f"{source} holds no text")
    return found


def _hub_texts(source: str) -> list[str]:
    """The field `text` of the train split of a hub data set, its first rows."""
    from datasets import load_dataset

    name, _, config = source.partition(":")
    try:
        return load_dataset(name, config or None, split="train[:5000]")["text"]
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"text {source} could not be fetched from the hub ({type(error).__name__}); check name and network, "
            "or give a local text file"
        ) from error
