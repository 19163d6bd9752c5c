"""Importance (paper Eq. 2-3) of a model's linear weights for a set of texts, by module and layer, with its band."""

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from workbench.analysis.backward import Batch, LayerwiseBackward, linear_weights, make_batches
from workbench.analysis.index import Importance
from workbench.checkpoints import CheckpointReader
from workbench.config import AnalyzeConfig
from workbench.core.importance import bootstrap, importance, resampling_weights
from workbench.core.layers import WHOLE, in_order, module_of
from workbench.examples import Example

NUM_SAMPLED = 1024
"""Weights per module whose gradient is kept for every example: the band is made from these."""
Progress = Callable[[int, int], None]


def open_model(path: Path, dtype: str, device_map: Any = None, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """A model to take gradients of; on GPUs spread over them by accelerate, which puts aside what does not fit."""
    on_gpu = torch.cuda.is_available()
    if dtype == "auto" and not on_gpu:
        dtype = "float32"
    return AutoModelForCausalLM.from_pretrained(
        path,
        dtype=dtype,
        device_map=device_map or ("auto" if on_gpu else None),
        trust_remote_code=trust_remote_code,
        use_safetensors=True,
    )


def measure(
    model: PreTrainedModel,
    checkpoint: Path,
    examples: Sequence[Example],
    config: AnalyzeConfig,
    *,
    seed: int,
    scratch: Path,
    progress: Progress = lambda done, total: None,
) -> tuple[Importance, dict[str, Any]]:
    """Importance of every layer and module for these examples, and what was done.

    `checkpoint` is where the model came from; `scratch` is a directory for the states between layers.

    Raises:
        ValueError: too few examples, or a model that cannot be taken apart.
    """  # fmt: skip
    if len(examples) < 2:
        raise ValueError(f"importance needs at least two examples for its interval, got {len(examples)}")
    began, examples = time.time(), sorted(examples, key=lambda example: len(example.ids))
    batches = make_batches(examples, config.batch_size)
    run = LayerwiseBackward(model, batches, scratch)
    if not math.isfinite(loss := run.forward()):
        raise ValueError(
            f"the loss of {checkpoint} on these texts is {loss} in {model.dtype}, so its gradients say nothing; set "
            "analyze.dtype to float32, or give a checkpoint without NaN"
        )
    layers = []
    for number in reversed(range(len(run.layers))):
        sums = _LayerSums(run, number, config, len(examples), checkpoint, seed)
        run.backward(number, sums.take)
        layers.append(sums.totals(config, batches, seed))
        progress(len(layers), len(run.layers))
    found = _together(layers[::-1])
    done = {
        "num_examples": len(examples),
        "num_tokens": int(sum((batch.targets != -100).sum() for batch in batches)),
        "loss": loss,
        "dtype": str(model.dtype).removeprefix("torch."),
        "gradients": config.gradients,
        "order": config.order,
        "seconds": time.time() - began,
    }
    return found, done


class _LayerSums:
    """The gradients of one layer's linear weights, as they come in."""

    def __init__(
        self, run: LayerwiseBackward, number: int, config: AnalyzeConfig, num_examples: int, checkpoint: Path, seed: int
    ) -> None:
        self.second, self.per_batch = config.order == "second", config.gradients == "per_batch"
        self.weights = {name: _weight(run, number, name, checkpoint) for name in linear_weights(run.layers[number])}
        self.gradient = {name: torch.zeros_like(w) for name, w in self.weights.items()}
        self.square = {name: torch.zeros_like(w) for name, w in self.weights.items()} if self.second else {}
        self.batch_totals = dict.fromkeys(self.weights, 0.0)
        draw = torch.Generator().manual_seed(seed)
        self.sampled = {
            name: torch.randint(w.numel(), (min(NUM_SAMPLED, w.numel()),), generator=draw)
            for name, w in self.weights.items()
        }
        self.each = {name: torch.empty(num_examples, len(at)) for name, at in self.sampled.items()}

    def take(self, name: str, rows: slice, inputs: Tensor, gradient: Tensor) -> None:
        """Add a batch's gradient of one weight: inputs (batch, tokens, in), gradient (batch, tokens, out)."""
        total, square = self.gradient[name], self.square.get(name)
        if self.per_batch:
            total.zero_()
            if self.second:
                square.zero_()
        if self.second:
            for x, dy in zip(inputs, gradient, strict=True):
                one = (dy.T @ x).to(total)
                total += one
                square += one.square_()
        elif inputs.dtype == total.dtype:
            total.addmm_(gradient.flatten(0, 1).T, inputs.flatten(0, 1))
        else:
            total += (gradient.flatten(0, 1).T @ inputs.flatten(0, 1)).to(total)
        if self.per_batch:
            self.batch_totals[name] += self._importance(name, rows.stop - rows.start)
        out, into = self.sampled[name] // inputs.shape[-1], self.sampled[name] % inputs.shape[-1]
        picked = gradient[..., out.to(gradient.device)].float() * inputs[..., into.to(inputs.device)].float()
        self.each[name][rows] = picked.sum(1).cpu()

    def _importance(self, name: str, count: int) -> float:
        """Of the sums over `count` examples."""
        fisher = self.square[name] / count if self.second else None
        return importance(self.gradient[name] / count, self.weights[name], fisher).sum(dtype=torch.float64).item()

    def totals(self, config: AnalyzeConfig, batches: Sequence[Batch], seed: int) -> dict[str, tuple[float, NDArray]]:
        """By kind of module, its importance and the bootstrap's draws of it."""
        groups = [batch.rows for batch in batches] if self.per_batch else None
        resamples = resampling_weights(len(batches) if groups else batches[-1].rows.stop, config.replicates, seed)
        found: dict[str, tuple[float, NDArray]] = {}
        for name, weight in self.weights.items():
            num_examples = batches[-1].rows.stop
            value = self.batch_totals[name] / len(batches) if groups else self._importance(name, num_examples)
            at = self.sampled[name].to(weight.device)
            factors = bootstrap(
                self.each[name], weight.flatten()[at].cpu(), resamples, second_order=self.second, batches=groups
            )
            before = found.get(kind := module_of(f"{name}.weight"), (0.0, np.zeros(config.replicates)))
            found[kind] = (before[0] + value, before[1] + value * factors)
        return found


def _weight(run: LayerwiseBackward, number: int, name: str, checkpoint: Path) -> Tensor:
    """A linear weight in float32; from the file where accelerate holds it elsewhere than in memory."""
    if (weight := run.weight(number, name)) is not None:
        return weight.detach().float()
    reader, full = CheckpointReader(checkpoint), f"{run.prefix}.{number}.{name}.weight"
    bits = torch.from_numpy(reader.values(full, slice(None)).copy())
    values = bits.view(torch.bfloat16) if bits.dtype == torch.uint16 else bits
    return values.view(reader.entries[full].shape).float()


def _together(layers: Sequence[dict[str, tuple[float, NDArray]]]) -> Importance:
    modules = in_order(sorted({kind for layer in layers for kind in layer}))
    zero = (0.0, np.zeros_like(next(iter(layers[0].values()))[1]))
    values = np.array([[layer.get(kind, zero)[0] for kind in modules] for layer in layers])
    draws = np.stack([np.stack([layer.get(kind, zero)[1] for kind in modules], 1) for layer in layers], 1)
    return Importance(
        [WHOLE, *modules],
        np.concatenate([values.sum(1, keepdims=True), values], 1),
        np.concatenate([draws.sum(2, keepdims=True), draws], 2),
    )
