"""The gradient of a whole set: one forward and one backward per example, one layer's gradients at a time.

The forward pass keeps the input of every layer in a file that is mapped into memory. Then, from the last
layer to the first, a layer is run again on all of its inputs, now with its graph, and the gradient that
reaches its output is sent through it; what comes out at the input takes the input's place in the file. So
the sums over all examples are needed for one layer only, and can be float32 whatever the model computes in.

Rows of a batch are padded at the end: under a causal mask nothing looks at the padding, so no mask is needed.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from workbench.examples import Example

HEAD_ROWS = 512
"""Predictions whose logits are in memory at a time."""
Take = Callable[[str, slice, Tensor, Tensor], None]


@dataclass(frozen=True)
class Batch:
    """Some examples side by side, padded at the end."""

    rows: slice
    """Which examples these are."""
    place: slice
    """Which positions of the file are theirs."""
    ids: Tensor  # (batch, tokens)
    targets: Tensor  # (batch, tokens) the next token where it carries loss, else -100


def make_batches(examples: Sequence[Example], size: int) -> list[Batch]:
    """Examples in batches, in the order given; sort them by length before."""
    batches, at = [], 0
    for first in range(0, len(examples), size):
        group = examples[first : first + size]
        length = max(len(example.ids) for example in group)
        ids, targets = torch.zeros(len(group), length, dtype=torch.long), torch.full((len(group), length), -100)
        for row, example in enumerate(group):
            ids[row, : len(example.ids)] = torch.tensor(example.ids)
            targets[row, example.first - 1 : len(example.ids) - 1] = torch.tensor(example.ids[example.first :])
        batches.append(Batch(slice(first, first + len(group)), slice(at, at + ids.numel()), ids, targets))
        at += ids.numel()
    return batches


def decoder_layers(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """The decoder blocks, and their name in the model.

    Raises:
        ValueError: no list of blocks with linear weights in it, or blocks with other matrices, as fused experts.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) and name.rsplit(".", 1)[-1] in ("layers", "h", "blocks"):
            if not linear_weights(module[0]):
                break
            _refuse_other_matrices(model, module)
            return name, module
    raise ValueError(f"{type(model).__name__} has no list of decoder blocks with linear layers; importance needs one")


def _refuse_other_matrices(model: PreTrainedModel, layers: nn.ModuleList) -> None:
    for layer in layers:
        known = {f"{name}.weight" for name in linear_weights(layer)}
        for name, weight in layer.named_parameters():
            if weight.dim() > 1 and name not in known:
                raise ValueError(
                    f"{type(model).__name__} has {name} in its blocks, which is no linear layer's weight (experts, a "
                    "router, a convolution): importance would leave it out, so it is not measured for this model; "
                    "for the weight change alone: workbench layers change"
                )


def linear_weights(layer: nn.Module) -> dict[str, nn.Linear]:
    """The linear modules of one layer, by their name in it."""
    return {name: module for name, module in layer.named_modules() if isinstance(module, nn.Linear)}


def mapped(directory: Path, size: int, dtype: torch.dtype) -> Tensor:
    """`size` numbers in a file of a directory that goes with them; on a disk that fills up later, a write would kill.

    Raises:
        ValueError: the disk has no room for it.
    """
    wanted, free = size * dtype.itemsize, shutil.disk_usage(directory).free
    if wanted > free:
        raise ValueError(
            f"importance keeps {wanted / 2**30:.3g} GiB of states between layers in {directory}, whose disk has "
            f"{free / 2**30:.3g} GiB left; free some, or lower analyze.num_examples or analyze.max_length"
        )
    with tempfile.NamedTemporaryFile(dir=directory) as file:  # lives on, nameless, while it is mapped
        os.posix_fallocate(file.fileno(), 0, wanted)
        return torch.from_file(file.name, shared=True, size=size, dtype=dtype)


class LayerwiseBackward:
    """The backward pass of the sum over examples of their mean loss, one layer after the other.

    Raises:
        ValueError: a model that is not built of decoder blocks and a plain output head.
    """

    def __init__(self, model: PreTrainedModel, batches: Sequence[Batch], scratch: Path) -> None:
        self.model, self.batches = model.eval().requires_grad_(False), batches
        self.prefix, self.layers = decoder_layers(model)
        self._check_head()
        self.calls: list[list[tuple[tuple, dict[str, Any]]]] = [[] for _ in batches]
        size = model.config.get_text_config().hidden_size
        positions, slots = batches[-1].place.stop, len(self.layers) + 1
        flat = mapped(scratch, slots * positions * size, model.dtype)
        self.states = flat.view(slots, positions, size)  # slot n: input of layer n, then its gradient

    def forward(self) -> float:
        """Run every batch; return the mean over examples of their loss per token."""
        hooks = [
            layer.register_forward_pre_hook(partial(self._keep_input, number), with_kwargs=True)
            for number, layer in enumerate(self.layers)
        ]
        hooks.append(self.layers[-1].register_forward_hook(self._begin_graph))
        try:
            total = sum(self._forward_one(number) for number in range(len(self.batches)))
        finally:
            for hook in hooks:
                hook.remove()
        return total / self.batches[-1].rows.stop

    def backward(self, number: int, take: Take) -> None:
        """Send the gradient through one layer, the last one first.

        `take(name, rows, inputs, gradient)` is called for every linear weight and batch, with the weight's
        inputs (batch, tokens, in) and the gradient of its outputs (batch, tokens, out).
        """
        layer = self.layers[number]
        for at, batch in enumerate(self.batches):
            hooks = [
                module.register_forward_hook(partial(_catch, take, name, batch.rows))
                for name, module in linear_weights(layer).items()
            ]
            try:
                args, kwargs = self.calls[at][number]
                hidden = self._read(number, batch).requires_grad_()
                out = _first(layer(hidden, *args, **kwargs))
                torch.autograd.backward(out, self._read(number + 1, batch).to(out.device))
            finally:
                for hook in hooks:
                    hook.remove()
            self._write(number, batch, hidden.grad)

    def weight(self, number: int, name: str) -> Tensor | None:
        """A linear weight of a layer; None where accelerate has put it aside."""
        weight = self.layers[number].get_submodule(name).weight
        return None if weight.is_meta else weight

    def _forward_one(self, at: int) -> float:
        self.at, batch = at, self.batches[at]
        ids = batch.ids.to(self.model.device)
        out = self.model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        wanted = batch.targets != -100
        counts = wanted.sum(1, keepdim=True).clamp(min=1)
        shares = (1 / counts).expand_as(wanted)[wanted].to(out.device)  # of a token in its example's mean
        targets, rows = batch.targets[wanted].to(out.device), out[wanted.to(out.device)]
        leaf, total, head = rows.detach().requires_grad_(), 0.0, self.model.get_output_embeddings()
        for first in range(0, len(targets), HEAD_ROWS):
            part = slice(first, first + HEAD_ROWS)
            losses = cross_entropy(head(leaf[part]).float(), targets[part].to(head.weight.device), reduction="none")
            loss = (losses * shares[part].to(losses.device)).sum()
            loss.backward()
            total += loss.item()
        rows.backward(leaf.grad)
        self._write(len(self.layers), batch, self.leaf.grad)
        return total

    def _keep_input(self, number: int, layer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        kwargs = dict(kwargs)
        hidden, args = (args[0], args[1:]) if args else (kwargs.pop("hidden_states"), ())
        self._write(number, self.batches[self.at], hidden)
        self.calls[self.at].append((args, kwargs))

    def _begin_graph(self, layer: nn.Module, args: tuple, out: Any) -> Any:
        """Only what comes after the last layer needs a graph in the forward pass."""
        self.leaf = _first(out).detach().requires_grad_()
        return (self.leaf, *out[1:]) if isinstance(out, tuple) else self.leaf

    def _read(self, slot: int, batch: Batch) -> Tensor:
        """(batch, tokens, hidden) of a slot, as a copy where the model computes."""
        return self.states[slot, batch.place].view(*batch.ids.shape, -1).to(self.model.device, copy=True)

    def _write(self, slot: int, batch: Batch, values: Tensor) -> None:
        self.states[slot, batch.place] = values.detach().reshape(batch.place.stop - batch.place.start, -1)

    @torch.no_grad()
    def _check_head(self) -> None:
        """The logits must be the head's output as it is, for the head is run apart from the model."""
        ids, head = self.batches[0].ids[:1, :4].to(self.model.device), self.model.get_output_embeddings()
        hidden = self.model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        logits = self.model(input_ids=ids, use_cache=False).logits
        if head is None or not torch.allclose(
            head(hidden).to(logits.device), logits, rtol=1e-2, atol=1e-2, equal_nan=True
        ):
            raise ValueError(f"{type(self.model).__name__} changes its logits behind the head; not supported here")


def _catch(take: Take, name: str, rows: slice, module: nn.Linear, args: tuple, out: Tensor) -> None:
    """Hand over a linear weight's input with the gradient of its output, once that comes.

    Some models run batch and tokens together (OPT): they are taken apart again.
    """
    count = rows.stop - rows.start
    inputs = args[0].detach().reshape(count, -1, module.in_features)
    out.register_hook(lambda dy: take(name, rows, inputs, dy.reshape(count, -1, module.out_features)))


def _first(out: Any) -> Tensor:
    """A layer's hidden states, whether it returns them alone or in a tuple."""
    return out[0] if isinstance(out, tuple) else out
