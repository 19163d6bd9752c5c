"""Batched generation on a transformers model: the engine that runs everywhere.

Four things keep it fast on a CPU: a prefix that all prompts share (few-shot examples) is encoded once
and kept, a prompt asked at several temperatures is encoded once, keys and values are written into
buffers in place instead of being copied at every token, and finished sequences leave the batch.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AutoModelForCausalLM, AutoTokenizer
from transformers.cache_utils import Cache, DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from workbench.engines import Generation, Request

STOP_EVERY = 8
"""Tokens between two looks for a stop string."""
COMPACT_BELOW = 0.8
"""Share of unfinished sequences under which the batch is made smaller."""


class BufferLayer(DynamicLayer):
    """Keys and values of one layer in a buffer with room for what is still to come."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room, self.length = room, 0

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Append (batch, heads, new, size) in place; return everything so far."""
        new = key_states.shape[-2]
        if not self.is_initialized:
            batch, heads, _, size = key_states.shape
            self.keys = key_states.new_empty(batch, heads, self.room, size)
            self.values = torch.empty_like(self.keys)
            self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
        end = self.length + new
        self.keys[:, :, self.length : end] = key_states
        self.values[:, :, self.length : end] = value_states
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_seq_length(self) -> int:
        """Positions filled."""
        return self.length

    def select(self, rows: Tensor) -> None:
        """Keep these rows of the batch, in this order; a row may be taken several times."""
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = old.new_empty(len(rows), *old.shape[1:])
            new[:, :, : self.length] = old[rows, :, : self.length]
            setattr(self, name, new)

    def grown(self, batch: int, room: int) -> "BufferLayer":
        """A copy for a batch of `batch` equal rows, with another amount of room."""
        other = BufferLayer(room)
        other.keys = self.keys.new_empty(batch, self.keys.shape[1], room, self.keys.shape[3])
        other.values = torch.empty_like(other.keys)
        other.keys[:, :, : self.length] = self.keys[:, :, : self.length]
        other.values[:, :, : self.length] = self.values[:, :, : self.length]
        other.dtype, other.device, other.length, other.is_initialized = (
            self.dtype,
            self.device,
            self.length,
            True,
        )
        return other


def decode_attention(module, query, key, value, attention_mask, **kwargs) -> tuple[Tensor, None]:
    """Attention that reads shared key/value heads in place when there is one query per sequence.

    The query heads of a group attend to the same keys, so they can stand as queries of one head:
    (batch, heads, 1, size) -> (batch, kv heads, heads per kv head, size).
    """
    batch, heads, length, size = query.shape
    if length > 1 or attention_mask is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    grouped = query.view(batch, key.shape[1], heads // key.shape[1], size)
    out = scaled_dot_product_attention(grouped, key, value, attn_mask=attention_mask, scale=kwargs["scaling"])
    return out.reshape(batch, 1, heads, size), None


AttentionInterface.register("workbench_decode", decode_attention)


@dataclass
class _Rows:
    """The unfinished sequences of a batch."""

    index: Tensor  # (rows,) place in the list of requests
    mask: Tensor  # (rows, positions so far) True where there is a token, not padding
    position: Tensor  # (rows,) rotary position of the next token
    temperature: Tensor  # (rows, 1)
    noise: Tensor  # (rows, max_new_tokens) uniform numbers, one for each token to sample

    def select(self, rows: Tensor) -> "_Rows":
        return _Rows(*(value[rows] for value in vars(self).values()))


class TransformersEngine:
    """A causal language model from a directory, in this process."""

    def __init__(self, checkpoint: Path, dtype: str = "auto", threads: int = 1) -> None:
        torch.set_num_threads(threads)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        on_cpu = "float32" if self.device.type == "cpu" else "auto"
        self.dtype = on_cpu if dtype == "auto" else dtype
        self.load(checkpoint)

    def load(self, checkpoint: Path) -> None:
        """Read model and tokenizer from a directory."""
        self.model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=self.dtype).to(self.device).eval()
        self.model.set_attn_implementation("workbench_decode")
        self.tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        generation = self.model.generation_config.eos_token_id
        ends = generation if isinstance(generation, list) else [generation, self.tokenizer.eos_token_id]
        self.end_ids = torch.tensor(sorted({i for i in ends if i is not None}), device=self.device)
        self._prefix: tuple[list[int], list[BufferLayer]] = ([], [])

    @torch.no_grad()
    def load_tensors(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Copy weights, named as in the checkpoint, into the model; see `Engine.load_tensors`."""
        held = self.model.state_dict()
        for name, tensor in tensors:
            if name not in held:
                raise ValueError(
                    f"{name} is no weight of {type(self.model).__name__} as loaded; load a directory instead"
                )
            held[name].copy_(tensor)
        self._prefix = ([], [])

    @torch.inference_mode()
    def generate(
        self, requests: Sequence[Request], *, max_new_tokens: int, stop: Sequence[str] = ()
    ) -> list[Generation]:
        """Continue each prompt; see `Engine.generate`."""
        if not requests:
            return []
        prompts = list(dict.fromkeys(request.prompt for request in requests))
        ids = self.tokenizer(prompts)["input_ids"]
        tokens = torch.full((len(requests), max_new_tokens), -1, device=self.device)
        rows, cache, logits = self._encode(requests, prompts, ids, max_new_tokens)
        for step in range(max_new_tokens):
            chosen = _choose(logits, rows.temperature, rows.noise[:, step])  # (rows,)
            tokens[rows.index, step] = chosen
            live = ~torch.isin(chosen, self.end_ids)
            if stop and step % STOP_EVERY == STOP_EVERY - 1:
                live &= ~self._has_stop(tokens[rows.index, max(0, step - 4 * STOP_EVERY) : step + 1], stop)
            if step + 1 == max_new_tokens or not live.any():
                break
            # A finished row that stays for a few steps more writes behind its end, which is cut off below.
            if live.float().mean() < COMPACT_BELOW:
                keep = live.nonzero().squeeze(1)
                rows, chosen = rows.select(keep), chosen[keep]
                for layer in cache.layers:
                    layer.select(keep)
            rows.mask = torch.cat([rows.mask, rows.mask.new_ones(len(chosen), 1)], dim=1)
            logits = self._forward(chosen[:, None], rows.mask, rows.position[:, None], cache)
            rows.position += 1
        return [self._finish(row, stop) for row in tokens.tolist()]

    def _encode(
        self, requests: Sequence[Request], prompts: list[str], ids: list[list[int]], max_new_tokens: int
    ) -> tuple[_Rows, Cache, Tensor]:
        """Run the prompts through the model, each once, and lay out one row per request."""
        prefix = self._shared_prefix(ids)
        rest = [row[prefix:] for row in ids]
        width = max(map(len, rest))
        padded = torch.tensor([[0] * (width - len(row)) + row for row in rest], device=self.device)
        lengths = torch.tensor([len(row) for row in rest], device=self.device)
        columns = torch.arange(width, device=self.device)
        real = columns >= width - lengths[:, None]  # (prompts, width)
        mask = torch.cat([real.new_ones(len(rest), prefix), real], dim=1)
        position = (prefix + columns - (width - lengths[:, None])).clamp(min=0)
        room = prefix + width + max_new_tokens
        if prefix:
            layers = [layer.grown(len(rest), room) for layer in self._prefix[1]]
        else:
            layers = [BufferLayer(room) for _ in range(self.model.config.num_hidden_layers)]
        cache = Cache(layers=layers)
        logits = self._forward(padded, mask, position, cache)
        place = {prompt: i for i, prompt in enumerate(prompts)}
        expand = torch.tensor([place[request.prompt] for request in requests], device=self.device)
        for layer in layers:
            layer.select(expand)
        rows = _Rows(
            index=torch.arange(len(requests), device=self.device),
            mask=mask[expand],
            position=prefix + lengths[expand],
            temperature=torch.tensor([[r.temperature] for r in requests], device=self.device),
            noise=torch.stack([_noise(r.seed, max_new_tokens) for r in requests]).to(self.device),
        )
        return rows, cache, logits[expand]

    def _shared_prefix(self, ids: list[list[int]]) -> int:
        """Encode what all prompts begin with, unless that was done before; return its length in tokens."""
        first, last = min(ids), max(ids)
        length = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
        length = min(length, min(map(len, ids)) - 1)
        if length < 32 or len(ids) == 1:
            return 0
        shared = first[:length]
        if shared != self._prefix[0]:
            layers = [BufferLayer(length) for _ in range(self.model.config.num_hidden_layers)]
            positions = torch.arange(length, device=self.device)[None]
            tokens = torch.tensor([shared], device=self.device)
            self._forward(tokens, torch.ones_like(tokens, dtype=torch.bool), positions, Cache(layers=layers))
            self._prefix = (shared, layers)
        return length

    def _forward(self, tokens: Tensor, mask: Tensor, position: Tensor, cache: Cache) -> Tensor:
        """Logits after the last of `tokens` (rows, new); the mask covers all positions so far."""
        new, total = tokens.shape[1], mask.shape[1]
        allowed = mask[:, None, None, :]  # (rows, 1, 1, total)
        if new > 1:
            end = torch.arange(total - new, total, device=self.device)
            causal = torch.arange(total, device=self.device) <= end[:, None]  # (new, total)
            # A padding position may see itself, so that no row of the softmax is empty.
            itself = torch.arange(total, device=self.device) == end[:, None]
            allowed = (allowed & causal) | itself
        return (
            self.model(
                input_ids=tokens,
                attention_mask=allowed,
                position_ids=position,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            .logits[:, -1]
            .float()
        )

    def _has_stop(self, tail: Tensor, stop: Sequence[str]) -> Tensor:
        """Which rows of token ids (rows, tail) hold a stop string."""
        texts = self.tokenizer.batch_decode(tail)
        return torch.tensor([any(s in text for s in stop) for text in texts], device=self.device)

    def _finish(self, row: list[int], stop: Sequence[str]) -> Generation:
        """Cut a row of ids at its end token, and its text at the first stop string."""
        ends = set(self.end_ids.tolist())
        length = next((i for i, token in enumerate(row) if token in ends or token < 0), len(row))
        text = self.tokenizer.decode(row[:length], skip_special_tokens=True)
        cut = min((at for at in (text.find(s) for s in stop) if at >= 0), default=None)
        finished = cut is not None or length < len(row)
        return Generation(text[:cut].strip(), length, finished)


def _noise(seed: int, length: int) -> Tensor:
    """The uniform numbers behind one sample; they depend on its seed alone."""
    return torch.rand(length, generator=torch.Generator().manual_seed(seed))


def _choose(logits: Tensor, temperature: Tensor, noise: Tensor) -> Tensor:
    """Greedy where the temperature is 0, else a draw by inverting the cumulative distribution."""
    greedy = logits.argmax(dim=-1)
    if not temperature.any():
        return greedy
    weights = torch.softmax(logits / temperature.clamp(min=1e-6), dim=-1).cumsum(dim=-1)  # (rows, vocabulary)
    drawn = torch.searchsorted(weights, noise[:, None] * weights[:, -1:], right=True).squeeze(1)
    drawn = drawn.clamp(max=logits.shape[-1] - 1)
    return torch.where(temperature.squeeze(1) > 0, drawn, greedy)
