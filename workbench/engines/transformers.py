"""Batched generation on a transformers model: the engine that runs everywhere.

Four things keep it fast on a CPU: a prefix that all prompts share (few-shot examples) is encoded once
and kept, a prompt asked at several temperatures is encoded once, keys and values are written into
buffers in place instead of being copied at every token, and finished sequences leave the batch.
"""

import gc
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.cache_utils import Cache

from workbench.engines import NO_ANSWER, Engine, Generation, Request, adapter_base
from workbench.engines.cache import BufferLayer
from workbench.engines.tokens import context_limit, room_behind, tokenized

STOP_EVERY = 8
"""Tokens between two looks for a stop string."""
COMPACT_BELOW = 0.8
"""Share of unfinished sequences under which the batch is made smaller."""


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


class TransformersEngine(Engine):
    """A causal language model from a directory, in this process."""

    def __init__(
        self,
        checkpoint: Path,
        dtype: str = "auto",
        threads: int = 1,
        max_model_len: int | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        torch.set_num_threads(threads)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        on_cpu = "float32" if self.device.type == "cpu" else "auto"
        self.dtype = on_cpu if dtype == "auto" else dtype
        self.max_model_len, self.trust_remote_code = max_model_len, trust_remote_code
        self.load(checkpoint)

    def load(self, checkpoint: Path) -> None:
        """Read model and tokenizer from a directory; a LoRA adapter is folded into its model in memory."""
        self.model = None  # two at once may be too many
        base, trust = adapter_base(checkpoint), self.trust_remote_code
        model = AutoModelForCausalLM.from_pretrained(
            base or checkpoint, dtype=self.dtype, trust_remote_code=trust, use_safetensors=True
        )
        if base:
            from peft import PeftModel  # slow to import

            model = PeftModel.from_pretrained(model, str(checkpoint)).merge_and_unload()
        self.model = model.to(self.device).eval()
        self.model.set_attn_implementation("workbench_decode")
        self.tokenizer = AutoTokenizer.from_pretrained(base or checkpoint, trust_remote_code=trust)
        self.limit = context_limit(base or checkpoint, self.max_model_len)
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

    def rest(self) -> bool:
        """Stay where that is cheap: on a CPU, and small; else close."""
        stays = self.device.type == "cpu" and psutil.Process().memory_info().rss < psutil.virtual_memory().total / 4
        if not stays:
            self.close()
        return stays

    def close(self) -> None:
        """Give back everything."""
        self.model, self._prefix = None, ([], [])
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @torch.inference_mode()
    def generate(
        self, requests: Sequence[Request], *, max_new_tokens: int, stop: Sequence[str] = ()
    ) -> list[Generation]:
        """Continue each prompt; see `Engine.generate`."""
        ids = tokenized(self.tokenizer, requests)
        room = room_behind(ids, self.limit, max_new_tokens)
        fitting = [i for i, tokens in enumerate(room) if tokens]
        results = [NO_ANSWER] * len(requests)
        if fitting:
            chosen = [requests[i] for i in fitting]
            made = self._continue(chosen, [ids[i] for i in fitting], [room[i] for i in fitting], stop)
            for i, row in zip(fitting, made, strict=True):
                results[i] = self._finish(row[: room[i]], stop)
        return results

    def _continue(
        self, requests: Sequence[Request], ids: list[list[int]], room: list[int], stop: Sequence[str]
    ) -> list[list[int]]:
        """New token ids for each request, at least up to its end or its room; -1 where there are none."""
        longest = max(room)
        tokens = torch.full((len(requests), longest), -1, device=self.device)
        room_left = torch.tensor(room, device=self.device)
        rows, cache, logits = self._encode(requests, ids, longest)
        live = torch.ones(len(requests), dtype=torch.bool, device=self.device)
        for step in range(longest):
            chosen = _choose(logits, rows.temperature, rows.noise[:, step])  # (rows,)
            tokens[rows.index, step] = chosen
            live = live & ~torch.isin(chosen, self.end_ids) & (room_left[rows.index] > step + 1)
            if stop and step % STOP_EVERY == STOP_EVERY - 1:
                live &= ~self._has_stop(tokens[rows.index, max(0, step - 4 * STOP_EVERY) : step + 1], stop)
            if not live.any():
                break
            # A finished row that stays for a few steps more writes behind its end, which is cut off in `_finish`.
            if live.float().mean() < COMPACT_BELOW:
                keep = live.nonzero().squeeze(1)
                rows, chosen, live = rows.select(keep), chosen[keep], live[keep]
                for layer in cache.layers:
                    layer.select(keep)
            rows.mask = torch.cat([rows.mask, rows.mask.new_ones(len(chosen), 1)], dim=1)
            logits = self._forward(chosen[:, None], rows.mask, rows.position[:, None], cache)
            rows.position = (rows.position + 1).clamp(max=self.limit - 1)
        return tokens.tolist()

    def _encode(
        self, requests: Sequence[Request], ids: list[list[int]], max_new_tokens: int
    ) -> tuple[_Rows, Cache, Tensor]:
        """Run the prompts through the model, each once, and lay out one row per request."""
        prompts = {prompt: i for i, prompt in enumerate(dict.fromkeys(map(tuple, ids)))}
        expand = torch.tensor([prompts[tuple(row)] for row in ids], device=self.device)
        prefix = self._shared_prefix(list(map(list, prompts)))
        rest = [list(row[prefix:]) for row in prompts]
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
        """Cut a row of ids at its end token, or behind the first stop string, from which on it is no text."""

        def text(length: int) -> str:
            return self.tokenizer.decode(row[:length], skip_special_tokens=True)

        ends = set(self.end_ids.tolist())
        length = next((i for i, token in enumerate(row) if token in ends or token < 0), len(row))
        finished = length < len(row)
        if any(s in text(length) for s in stop):
            # The fewest tokens whose text holds one, which is where vLLM stops and what it counts.
            length = bisect_left(range(length), True, key=lambda n: any(s in text(n) for s in stop))
            finished = True
        found = text(length)
        cut = min((at for at in (found.find(s) for s in stop) if at >= 0), default=None)
        return Generation(found[:cut].strip(), length, finished)


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
