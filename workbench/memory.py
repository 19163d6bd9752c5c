"""How much memory each phase takes at its peak, reckoned from a model's shape and the settings. Imports no torch.

Bytes a trained weight: 2 (bf16) + 2 (bf16 gradient) + 12 (fp32 master and two Adam moments). For the update gradients
are in fp32 too, a part at a time and when the activations are gone. A CPU without bf16 trains in fp32: 4 + 4 + 8, where
the weights are their own master, with ZeRO 4 + 4 + 12. ZeRO splits what it splits over the processes. Lengths are the
longest the settings allow, so batches of shorter examples take less. **None of it was checked against a GPU yet**; on a
CPU the fine-tuning of the pocket model was (tests/test_estimate.py). What an engine that sleeps beside the training
keeps of a GPU is not in it.
"""

from dataclasses import dataclass, fields, replace
from math import ceil

from workbench.config import AnalyzeConfig, EngineConfig, SftConfig
from workbench.machine import cpu_has_bf16
from workbench.shapes import Shape

GIB = 2**30
RUNTIME_GIB = 0.6
"""CUDA context and libraries of a process (assumed); on a CPU Python, torch, transformers: measured 0.55."""
KEPT_BY_MALLOC, KEPT_WHEN_CHECKPOINTING = 1.35, 2.8
"""On a CPU the C library gives freed memory back late: peak of the activations as the phase is started, against live
bytes; measured on the pocket model."""
MERGE_GIB = 0.1
"""A merge streams its tensors: measured beside mapped files on a 494 M-parameter pair (benchmarks/merge.py)."""
UPDATED_TOGETHER = 50_000_000
"""Entries whose gradients are in fp32 at a time without ZeRO, and the rest of a tensor (phases/optimizer.py)."""
BUCKET = 500_000_000
"""Entries of DeepSpeed's reduce bucket (its default)."""
LIVE = 1_000_000_000
"""Weights that ZeRO-3 may hold together at once (DeepSpeed's default)."""
HEAD_ROWS = 512
"""Predictions whose logits phase analyze has in memory at a time."""
VLLM_CONTEXT, VLLM_SEQUENCES, VLLM_LENGTH = 8192, 256, 512
"""Longest context unless the config says more; on a CPU, sequences and tokens of each that the cache is sized for."""


@dataclass(frozen=True)
class Memory:
    """Peak of one phase in GiB: of each GPU, on a CPU of the machine; and of the host beside GPUs."""

    weights: float = 0.0
    gradients: float = 0.0
    optimizer: float = 0.0
    activations: float = 0.0
    kv_cache: float = 0.0
    other: float = 0.0
    """Runtime, communication buffers, weights that ZeRO-3 has gathered."""
    host: float = 0.0

    @property
    def total(self) -> float:
        """All but the host's."""
        return sum(getattr(self, field.name) for field in fields(self) if field.name != "host")

    def times(self, copies: int) -> "Memory":
        """Of so many equal processes together."""
        return Memory(**{field.name: copies * getattr(self, field.name) for field in fields(self)})


def trained_item(*, on_gpu: bool) -> int:
    """Bytes of a weight while it is trained: of bf16, or of fp32 on a CPU that has no bf16."""
    return 2 if on_gpu or cpu_has_bf16() else 4


def training(
    shape: Shape, sft: SftConfig, *, processes: int = 1, here: int = 1, on_gpu: bool, length: int | None = None
) -> Memory:
    """Phase sft, with `processes` in all and `here` of them on this machine, and examples of `length` tokens.

    Without a length, of the greatest that the settings allow.
    """
    found, host = _training_process(shape, sft, processes, on_gpu, length or sft.max_length)
    if on_gpu:
        return replace(found, host=host * (here if sft.zero else 1))
    return replace(found, other=found.other + (host if sft.zero else 0.0)).times(here)


def _training_process(shape: Shape, sft: SftConfig, processes: int, on_gpu: bool, length: int) -> tuple[Memory, float]:
    """One process's memory, and its share of the host's."""
    everything = shape.num_parameters
    trained = shape.lora_parameters(sft.lora.rank, sft.lora.target_modules) if sft.lora else everything
    adapters = trained if sft.lora else 0
    split = processes if sft.zero else 1
    item = trained_item(on_gpu=on_gpu)
    weights = item * (everything + adapters) / (split if sft.zero == 3 else 1)
    gradients, optimizer = item * trained / split, (12 if sft.zero or item == 2 else 8) * trained / split
    # The weights are read before they are moved to the GPU; an adapter is folded in fp32, then bf16, when all is done.
    reading, folding = (0 if sft.zero else 2 if sft.lora else 4) * everything, (6 * everything if sft.lora else 0)
    other, offloaded = 0.0, 0.0
    if sft.zero:
        other += item * (BUCKET if on_gpu else min(BUCKET, trained)) * (2 if sft.zero == 2 and on_gpu else 1)
    if sft.zero == 3:
        other += item * min(everything, LIVE) * (1 if sft.offload == "all" else 1 - 1 / split)
    if sft.offload != "none":
        offloaded, gradients, optimizer = gradients + optimizer + 4 * trained / split, 0.0, 0.0
    if sft.offload == "all":
        offloaded, weights = offloaded + weights, 0.0
    active = activations(shape, sft.batch_size * length, length, checkpointing=sft.gradient_checkpointing, item=item)
    largest = max(shape.vocab * shape.hidden, shape.hidden * shape.intermediate)
    at_once = trained / split if sft.zero else min(trained, UPDATED_TOGETHER + largest) if item == 2 else 0
    active = max(active, 4 * at_once if sft.offload == "none" else 0)
    if not on_gpu:
        active = max((KEPT_WHEN_CHECKPOINTING if sft.gradient_checkpointing else KEPT_BY_MALLOC) * active, folding)
    sizes = [size / GIB for size in (weights, gradients, optimizer, active)]
    host = max(reading, folding if on_gpu else 0) + offloaded if on_gpu else offloaded
    return Memory(*sizes, other=other / GIB + RUNTIME_GIB), host / GIB


def kept_by_layer(shape: Shape, length: int, item: int) -> int:
    """Bytes of one token that a layer keeps for its backward pass, with attention that keeps no scores.

    Both norms' input in fp32 (8 h bytes), and in entries of `item` bytes: their result twice (4 h); queries, keys and
    values with their heads repeated, the attention's result twice (5 h); gate, up, activated gate, product (4 i); the
    mask over `length` tokens.
    """
    entries = 4 * shape.hidden + 5 * shape.heads * shape.head_size + 4 * shape.intermediate + length
    return 8 * shape.hidden + item * entries


def activations(shape: Shape, tokens: int, length: int, *, checkpointing: bool, item: int) -> float:
    """Bytes of so many tokens at the peak of the backward pass, in sequences of `length`.

    The loss has three fp32 copies of the logits at once (12 v); a layer's backward pass makes about a third of what
    the layer kept anew.
    """
    logits, passing = 12 * shape.vocab, item * (3 * shape.hidden + 2 * shape.intermediate)
    layer = kept_by_layer(shape, length, item)
    if checkpointing:
        return tokens * (item * shape.hidden * shape.layers + max(logits, layer + passing))
    return tokens * (layer * shape.layers + max(logits, passing))


def cache_bytes(shape: Shape, item_bytes: int) -> int:
    """Keys and values of one token."""
    return 2 * shape.layers * shape.kv_heads * shape.head_size * item_bytes


def context_of(shape: Shape, engine: EngineConfig) -> int:
    """Longest prompt and answer together with vLLM, in tokens."""
    return engine.max_model_len or min(shape.context, VLLM_CONTEXT)


def generating(
    shape: Shape, engine: EngineConfig, kind: str, *, rows: int, length: int, gpu_gib: float | None, host_gib: float
) -> Memory:
    """Phases sample and evaluate: `rows` sequences of `length` tokens (prompt and answer) at a time.

    `gpu_gib` is a GPU's memory, None on a CPU; `host_gib` is free beside it, and bounds vLLM's cache there. On a GPU
    vLLM takes the share it is given: what its weights leave is key/value cache, one longest sequence at least.
    """
    item = {"float32": 4, "bfloat16": 2}.get(engine.dtype, 4 if gpu_gib is None else shape.item_bytes)
    token = cache_bytes(shape, item)
    weights = shape.num_parameters * item / (engine.tensor_parallel if kind == "vllm" else 1) / GIB
    logits = rows * shape.vocab * 16 / GIB  # as fp32: scaled, softmax, summed up
    if kind == "vllm":
        limit = context_of(shape, engine)
        working = 4 * (4 * shape.hidden + 3 * shape.intermediate) * VLLM_CONTEXT / GIB + min(logits, 1.0)
        least = limit * token / engine.tensor_parallel / GIB
        share = least if gpu_gib is None else engine.gpu_memory * gpu_gib - weights - working - RUNTIME_GIB
        cache = max(least, share)
        if gpu_gib is None:
            wanted = max(limit, VLLM_SEQUENCES * VLLM_LENGTH) * token / GIB
            cache = max(1, ceil(max(least, min(wanted, host_gib / 4))))
        found = Memory(weights=weights, activations=working, kv_cache=cache, other=RUNTIME_GIB)
    else:
        working = rows * length * (3 * shape.intermediate + 4 * shape.hidden) * item / GIB / 4 + logits
        found = Memory(weights=weights, activations=working, kv_cache=rows * length * token / GIB, other=RUNTIME_GIB)
    return found if gpu_gib is not None else found.times(engine.data_parallel)


def analyzing(shape: Shape, analyze: AnalyzeConfig, *, on_gpu: bool) -> Memory:
    """Phase analyze: the model, and one layer's weights and sums in fp32 at a time."""
    item = {"float32": 4, "bfloat16": 2}.get(analyze.dtype, shape.item_bytes if on_gpu else 4)
    layer, largest = shape.layer_parameters, max(into * out for into, out in shape.linears.values())
    sums = 4 * ((3 if analyze.order == "second" else 2) * layer + largest)
    queries = shape.heads * shape.head_size
    tokens = analyze.batch_size * analyze.max_length
    working = tokens * (16 * shape.hidden + 10 * queries + 8 * shape.intermediate) * item / 2
    return Memory(
        weights=shape.num_parameters * item / GIB,
        gradients=sums / GIB,
        activations=(working + HEAD_ROWS * shape.vocab * 12) / GIB,
        other=RUNTIME_GIB,
    )


def merging(*, on_gpu: bool) -> Memory:
    """Phase merge, which no GPU takes part in."""
    return Memory(host=MERGE_GIB) if on_gpu else Memory(other=MERGE_GIB)
