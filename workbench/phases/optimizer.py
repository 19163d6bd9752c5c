"""AdamW with an fp32 master copy of weights that may be bf16.

The forward and backward pass run in bf16; the update is made on the master copy and rounded back, so
that changes smaller than a bf16 step add up instead of vanishing. On a CPU this is several times
faster than autocast, which converts every weight at every use. Weights that are fp32 are their own master.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

CHUNK = 50_000_000
"""Entries updated together: their gradients are there in fp32 for as long."""


class MasterAdamW(torch.optim.Optimizer):
    """AdamW on `masters`, fp32 copies of `params`; they are part of its state, so that it resumes exactly."""

    def __init__(self, params: Iterable[Tensor], lr: float, weight_decay: float, masters: Iterable[Tensor]) -> None:
        super().__init__(params, {"lr": lr})
        self.params = [p for group in self.param_groups for p in group["params"]]
        self.masters = list(masters)
        self.chunks = list(_chunks(self.masters))
        self.inner = [
            torch.optim.AdamW(_decayed(self.masters[chunk], weight_decay), lr=lr, fused=True) for chunk in self.chunks
        ]

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Update the masters with the learning rate set on this optimizer, and round them into the params."""
        for optimizer, chunk in zip(self.inner, self.chunks, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = self.param_groups[0]["lr"]
            for master, param in zip(self.masters[chunk], self.params[chunk], strict=True):
                master.grad = None if param.grad is None else param.grad.float()
            optimizer.step()
            optimizer.zero_grad()
        torch._foreach_copy_(self.params, self.masters)

    def state_dict(self) -> dict[str, Any]:
        """Masters and moments; and this optimizer's own groups, for the schedule."""
        inner = [optimizer.state_dict() for optimizer in self.inner]
        return {"outer": super().state_dict(), "inner": inner, "masters": self.masters}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put a saved state in place, and the masters' values into the params."""
        super().load_state_dict(state_dict["outer"])
        for optimizer, saved in zip(self.inner, state_dict["inner"], strict=True):
            optimizer.load_state_dict(saved)
        for master, saved in zip(self.masters, state_dict["masters"], strict=True):
            master.copy_(saved)
        torch._foreach_copy_(self.params, self.masters)


def _decayed(tensors: Sequence[Tensor], weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay; norms and biases do not, as with the Hugging Face Trainer."""
    sides = [([t for t in tensors if t.ndim > 1], weight_decay), ([t for t in tensors if t.ndim < 2], 0.0)]
    return [{"params": side, "weight_decay": decay} for side, decay in sides if side]


def _chunks(tensors: Sequence[Tensor]) -> Iterator[slice]:
    """Neighbours that together have about `CHUNK` entries."""
    begin, size = 0, 0
    for end, tensor in enumerate(tensors, start=1):
        size += tensor.numel()
        if size >= CHUNK or end == len(tensors):
            yield slice(begin, end)
            begin, size = end, 0
