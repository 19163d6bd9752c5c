"""AdamW for bf16 weights with an fp32 master copy.

The forward and backward pass run in bf16; the update is made on the master copy and rounded back, so
that changes smaller than a bf16 step add up instead of vanishing. On a CPU this is several times
faster than autocast, which converts every weight at every use.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


class MasterAdamW(torch.optim.Optimizer):
    """AdamW on fp32 copies of `params`; the copies are part of its state, so that it resumes exactly."""

    def __init__(self, params: Iterable[Tensor], lr: float, weight_decay: float, masters: Iterable[Tensor]) -> None:
        super().__init__(params, {"lr": lr})
        self.params = [p for group in self.param_groups for p in group["params"]]
        self.masters = [m.detach().float().clone() for m in masters]
        self.inner = torch.optim.AdamW(self.masters, lr=lr, weight_decay=weight_decay, fused=True)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Update the masters with the learning rate set on this optimizer, and round them into the params."""
        for master, param in zip(self.masters, self.params, strict=True):
            master.grad = None if param.grad is None else param.grad.float()
        for group in self.inner.param_groups:
            group["lr"] = self.param_groups[0]["lr"]
        self.inner.step()
        torch._foreach_copy_(self.params, self.masters)

    def state_dict(self) -> dict[str, Any]:
        """Masters and moments; and this optimizer's own groups, for the schedule."""
        return {"outer": super().state_dict(), "inner": self.inner.state_dict(), "masters": self.masters}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put a saved state in place."""
        super().load_state_dict(state_dict["outer"])
        self.inner.load_state_dict(state_dict["inner"])
        for master, saved in zip(self.masters, state_dict["masters"], strict=True):
            master.copy_(saved)
