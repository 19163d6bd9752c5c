"""The shape of a model, from its config.json alone: how many weights, and how they are laid out. Imports no torch."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import ceil
from pathlib import Path
from typing import Any

from workbench import checkpoints
from workbench.settings import facts

HUB_TIMEOUT_S = 3.0
EXACT = ("qwen2", "qwen3", "llama", "mistral")
"""Model types whose parameters are counted without error."""
ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Shape:
    """A decoder of attention and gated MLP blocks."""

    model_type: str
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    vocab: int
    tied: bool
    context: int
    dtype: str
    attention_bias: bool
    mlp_bias: bool
    origin: str
    """Where the numbers come from, for people."""

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """(in, out) of each linear weight of a layer."""
        queries, keys = self.heads * self.head_size, self.kv_heads * self.head_size
        return {
            "q_proj": (self.hidden, queries),
            "k_proj": (self.hidden, keys),
            "v_proj": (self.hidden, keys),
            "o_proj": (queries, self.hidden),
            "gate_proj": (self.hidden, self.intermediate),
            "up_proj": (self.hidden, self.intermediate),
            "down_proj": (self.intermediate, self.hidden),
        }

    @property
    def layer_parameters(self) -> int:
        """Of one decoder block."""
        total = sum(into * out for into, out in self.linears.values()) + 2 * self.hidden
        qkv = (self.heads + 2 * self.kv_heads) * self.head_size
        if self.model_type == "qwen2":
            total += qkv
        elif self.attention_bias:
            total += qkv + self.hidden
        if self.mlp_bias:
            total += 2 * self.intermediate + self.hidden
        return total + (2 * self.head_size if self.model_type == "qwen3" else 0)

    @property
    def num_parameters(self) -> int:
        """Of the whole model, a tied head counted once."""
        return self.layers * self.layer_parameters + self.vocab * self.hidden * (2 - self.tied) + self.hidden

    @property
    def is_exact(self) -> bool:
        """Whether the count is one, or an estimate for a model type that was not looked at."""
        return self.model_type in EXACT

    @property
    def item_bytes(self) -> int:
        """Bytes of a weight in the checkpoint."""
        return ITEM_BYTES.get(self.dtype, 2)

    def lora_parameters(self, rank: int, modules: Sequence[str] = ()) -> int:
        """Of the adapters on these linear weights, on all of them where none is named."""
        chosen = [size for name, size in self.linears.items() if not modules or name in modules]
        return self.layers * sum(rank * (into + out) for into, out in chosen)


def read_shape(config: Mapping[str, Any], origin: str) -> Shape:
    """The shape that a config.json describes.

    Raises:
        ValueError: it lacks a size that is needed.
    """
    found = config.get("text_config", config)
    try:
        hidden, heads = int(found["hidden_size"]), int(found["num_attention_heads"])
        return Shape(
            model_type=str(found.get("model_type", config.get("model_type", "unknown"))),
            hidden=hidden,
            intermediate=int(found["intermediate_size"]),
            layers=int(found["num_hidden_layers"]),
            heads=heads,
            kv_heads=int(found.get("num_key_value_heads") or heads),
            head_size=int(found.get("head_dim") or hidden // heads),
            vocab=int(found["vocab_size"]),
            tied=bool(found.get("tie_word_embeddings", config.get("tie_word_embeddings", False))),
            context=int(found.get("max_position_embeddings") or 2048),
            dtype=str(found.get("dtype") or found.get("torch_dtype") or config.get("torch_dtype") or "bfloat16"),
            attention_bias=bool(found.get("attention_bias", False)),
            mlp_bias=bool(found.get("mlp_bias", False)),
            origin=origin,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"the size of the model in {origin} is not known: its config.json lacks {error}") from error


def find_shape(model: str) -> Shape | None:
    """A model's shape: from its directory, the hub's cache, the shipped facts, or the hub (config.json alone).

    None where it cannot be had: a hub name that was never fetched, and no network.
    """
    path = Path(checkpoints.absolute_model(model))
    if path.is_dir():
        file = path / "config.json"
        return _or_none(file.read_text(encoding="utf-8"), str(path)) if file.is_file() else None
    if cached := _cached(model):
        return _or_none(cached.read_text(encoding="utf-8"), f"{model}, in the hub's cache")
    if known := facts("models").get(model):
        return read_shape(known, f"{model}, as published")
    config = _fetched(model, int(time.time() // 60))
    return None if config is None else _or_none(config, f"{model}, from the hub")


def _or_none(config: str, origin: str) -> Shape | None:
    """The shape in the text of a config.json; None where that is of a kind this module knows nothing of."""
    try:
        return read_shape(json.loads(config), origin)
    except (ValueError, AttributeError):
        return None


def _cached(model: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(model, "config.json")
    except HFValidationError:
        return None
    return Path(found) if isinstance(found, str) else None


@lru_cache(maxsize=64)
def _fetched(model: str, minute: int) -> str | None:
    """config.json from the hub; asked at most once a minute, for the screen asks as people type."""
    import httpx
    from huggingface_hub import constants, hf_hub_url
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import build_hf_headers

    if constants.HF_HUB_OFFLINE:
        return None
    try:  # not hf_hub_download, which tries for half a minute where there is no network
        url, headers = hf_hub_url(model, "config.json"), build_hf_headers()
        found = httpx.get(url, headers=headers, timeout=HUB_TIMEOUT_S, follow_redirects=True)
    except (httpx.HTTPError, HFValidationError):
        return None
    return found.text if found.is_success else None


SAMPLE = (
    "A baker sells 24 rolls in the morning and half as many in the afternoon. Each roll costs $1.50. How much does "
    "she earn? She sells 24 / 2 = 12 rolls in the afternoon. She sells 24 + 12 = 36 rolls. 36 * 1.50 = 54."
)
CHARS_PER_TOKEN = 3.0
"""Assumed of mathematical prose where no tokenizer is here to be asked."""


@lru_cache
def chars_per_token(model: str) -> float:
    """Of mathematical prose, by the model's own tokenizer where it is here."""
    file = Path(checkpoints.absolute_model(model)) / "tokenizer.json"
    if not file.is_file():
        return CHARS_PER_TOKEN
    from tokenizers import Tokenizer

    return len(SAMPLE) / max(1, len(Tokenizer.from_file(str(file)).encode(SAMPLE).ids))


def tokens_of(chars: float, model: str) -> int:
    """Length in tokens of a text of so many characters."""
    return ceil(chars / chars_per_token(model))
