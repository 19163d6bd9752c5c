"""The settings of fine-tuning: what is learned from, how, with which adapters. Part of `config`."""

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from workbench.section import Section, as_list


def _absolute(file: str) -> str:
    """A path that means the same from anywhere: training is started from the run's directory."""
    return str(Path(os.path.expanduser(file)).absolute())


class DataConfig(Section):
    """What a checkpoint is fine-tuned on, beside the iteration's own kept solutions."""

    mixture_share: float = Field(0.5, ge=0, le=1)
    """Method mixture: share of the earlier iterations' kept solutions that is learned again (not in the paper)."""
    real_share: float = Field(0.0, ge=0, le=1)
    """Share of worked solutions of the train split among the examples; 1 learns from them alone and samples
    nothing (paper, appendix C)."""


class LoraConfig(Section):
    """Low-rank adapters (arXiv 2106.09685) instead of all weights."""

    rank: int = Field(16, ge=1, le=1024)
    """Rank of the adapters (not in the paper, which trains all weights)."""
    alpha: float = Field(32.0, gt=0)
    """Their scale is alpha / rank."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout before the adapters."""
    target_modules: Annotated[tuple[str, ...], BeforeValidator(as_list)] = ()
    """Linear weights that get one, as q_proj, v_proj; empty: every one but the head."""


class SftConfig(Section):
    """How a checkpoint is fine-tuned."""

    epochs: int = Field(3, ge=1)
    """Passes over the kept solutions (paper: 3)."""
    learning_rate: float = Field(2e-5, gt=0)
    """Peak learning rate (paper: 2e-5)."""
    schedule: Literal["cosine", "linear"] = "cosine"
    """Decay of the learning rate to zero."""
    warmup_ratio: float = Field(0.03, ge=0, lt=1)
    """Share of the steps over which the learning rate rises (paper: 0.03)."""
    batch_size: int = Field(4, ge=1)
    """Solutions per forward pass (paper: 4)."""
    accumulation: int = Field(4, ge=1)
    """Forward passes per optimizer step (paper: 4)."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW weight decay of matrices; norms and biases have none (with offload they have)."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients are scaled down to this norm."""
    max_length: int = Field(1024, ge=16)
    """Longer examples (prompt and response, in tokens) are left out and counted."""
    save_every_steps: int = Field(200, ge=1)
    """Steps between the optimizer checkpoints from which a killed phase continues."""
    lora: LoraConfig | None = None
    """Train adapters; null trains all weights (paper)."""
    batching: Literal["length", "packed"] = "length"
    """length: examples of like length share a batch; packed: any examples, laid end to end instead of padded,
    each seeing itself alone."""
    gradient_checkpointing: bool = False
    """Compute activations twice instead of keeping them."""
    zero: Literal[0, 2, 3] = 0
    """DeepSpeed ZeRO: 2 splits gradients and optimizer over the processes, 3 the weights too (paper: 3); 0 is off."""
    offload: Literal["none", "optimizer", "all"] = "none"
    """With ZeRO, what is kept in the host's memory: the optimizer, with ZeRO-3 also the weights."""
    processes: int | None = Field(None, ge=1)
    """Processes per machine with ZeRO; null: one for each GPU, one without GPUs. batch_size is that of each."""
    hostfile: Annotated[str, AfterValidator(_absolute)] | None = None
    """DeepSpeed host file ("name slots=8" a line) to train on several machines, as many processes on each as it says
    or `processes`; null trains on this one."""

    @model_validator(mode="after")
    def _fits(self) -> "SftConfig":
        if not self.zero and (self.offload != "none" or self.processes not in (None, 1) or self.hostfile):
            raise ValueError("offload, processes and hostfile need ZeRO: set sft.zero to 2 or 3")
        if self.offload == "all" and self.zero != 3:
            raise ValueError("offload 'all' moves the weights, which only sft.zero = 3 splits")
        return self
