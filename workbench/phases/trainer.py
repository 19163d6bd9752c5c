"""The Hugging Face Trainer as phase `sft` uses it: arguments, optimizer, DeepSpeed, reports."""

import os
import resource
import time
from collections.abc import Sequence
from math import isfinite
from typing import Any

import torch
from accelerate import PartialState
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, PreTrainedModel, Trainer, TrainerCallback, TrainingArguments
from transformers.pytorch_utils import Conv1D

from workbench.config import SftConfig
from workbench.events import Emit
from workbench.jobs import SftJob
from workbench.machine import cpu_has_bf16
from workbench.phases.optimizer import MasterAdamW
from workbench.phases.training_data import Example, packed, padded
from workbench.rundir import PhaseDir

ON_GPU = torch.cuda.is_available()
IN_BF16 = ON_GPU or cpu_has_bf16()
COMPUTE = torch.bfloat16 if IN_BF16 else torch.float32
"""What weights and activations are in: bf16, but on a CPU that has no instructions for it, and is slow in it."""


class MasterTrainer(Trainer):
    """A Trainer whose weights come back with the optimizer's masters when it resumes.

    peft would put new tensors in their place, which no optimizer knows: training would go on without effect.
    """

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        pass


def make_trainer(job: SftJob, place: PhaseDir, emit: Emit, examples: Sequence[Example]) -> Trainer:
    """A Trainer that is about to fine-tune `job.start` on the examples."""
    arguments = training_arguments(job, place)  # first: with ZeRO-3 it decides how weights are loaded
    model = load(job)
    trainer = (Trainer if job.sft.zero else MasterTrainer)(
        model=model,
        args=arguments,
        train_dataset=list(examples),
        data_collator=packed if job.sft.batching == "packed" else padded,
        optimizers=(None if job.sft.zero else master_optimizer(model, job.sft), None),
    )
    trainer.add_callback(LastStep())
    if trainer.is_world_process_zero():
        trainer.add_callback(Report(emit, sum(len(e["input_ids"]) for e in examples)))
    return trainer


def load(job: SftJob) -> PreTrainedModel | PeftModel:
    """The start checkpoint, with adapters where the config wants them."""
    sft = job.sft
    # Without ZeRO, fp32 until the optimizer has copied its masters; adapters leave the weights as they are.
    dtype = COMPUTE if sft.zero or sft.lora else torch.float32
    model = AutoModelForCausalLM.from_pretrained(
        job.start.path, dtype=dtype, trust_remote_code=job.trust_remote_code, use_safetensors=True
    )
    model.config.use_cache = False
    if sft.lora:
        torch.manual_seed(job.seed + job.iteration)  # the adapters begin at random
        chosen = LoraConfig(
            r=sft.lora.rank,
            lora_alpha=sft.lora.alpha,
            lora_dropout=sft.lora.dropout,
            target_modules=list(sft.lora.target_modules) or "all-linear",
            task_type="CAUSAL_LM",
        )
        check_targets(model, sft.lora.target_modules)
        model = get_peft_model(model, chosen)
        model.enable_input_require_grads()  # what gradient checkpointing needs where the embeddings are frozen
    return model


def check_targets(model: PreTrainedModel, targets: Sequence[str]) -> None:
    """Each target must name linear weights; a head tied to the embeddings is none, it would change these as well.

    Raises:
        ValueError: naming the first that is wrong.
    """
    head = model.get_output_embeddings() if model.config.tie_word_embeddings else None
    linears = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear | Conv1D) and m is not head]
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in linears):
            known = ", ".join(dict.fromkeys(name.rsplit(".", 1)[-1] for name in linears))
            raise ValueError(
                f"sft.lora.target_modules: {target!r} is no linear weight that can have an adapter; those of "
                f"{model.name_or_path} are {known}; empty takes all but the head"
            )


def master_optimizer(model: torch.nn.Module, sft: SftConfig) -> MasterAdamW:
    """Turn the weights into `COMPUTE`, with an fp32 master copy in the optimizer."""
    if ON_GPU:
        model.cuda()  # before the optimizer copies the weights
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    masters = [weight.detach().float() for weight in trained]  # in fp32 the weights themselves
    for weight in model.parameters():  # not the buffers: rotary frequencies in bf16 turn late positions by radians
        weight.data = weight.data.to(COMPUTE)
    return MasterAdamW(trained, sft.learning_rate, sft.weight_decay, masters)


def training_arguments(job: SftJob, place: PhaseDir) -> TrainingArguments:
    """The Trainer's arguments; with ZeRO those of DeepSpeed among them."""
    sft = job.sft
    extra: dict[str, Any] = {}
    if sft.zero:
        _open_process_group()
        extra = {"deepspeed": deepspeed_config(sft), "bf16": IN_BF16, "weight_decay": sft.weight_decay}
        extra["accelerator_config"] = {"use_configured_state": True}
    return TrainingArguments(
        output_dir=str(place.path / "trainer"),
        num_train_epochs=sft.epochs,
        per_device_train_batch_size=sft.batch_size,
        gradient_accumulation_steps=sft.accumulation,
        gradient_checkpointing=sft.gradient_checkpointing,
        learning_rate=sft.learning_rate,
        lr_scheduler_type=sft.schedule,
        warmup_steps=sft.warmup_ratio,
        max_grad_norm=sft.max_grad_norm,
        train_sampling_strategy="group_by_length" if sft.batching == "length" else "random",
        seed=job.seed + job.iteration,
        save_strategy="steps",
        save_steps=sft.save_every_steps,
        save_total_limit=1,
        logging_strategy="steps",
        logging_steps=5,
        logging_first_step=True,
        logging_nan_inf_filter=False,  # it would put other steps' mean in the place of a loss that is no number
        report_to=[],
        disable_tqdm=True,
        use_cpu=not ON_GPU,
        dataloader_pin_memory=ON_GPU,
        **extra,
    )


def _open_process_group() -> None:
    """Left to itself, accelerate trains without DeepSpeed on a CPU, and says nothing."""
    if not ON_GPU:
        os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
        PartialState(backend="gloo")
        del os.environ["ACCELERATE_USE_DEEPSPEED"]


def deepspeed_config(sft: SftConfig) -> dict[str, Any]:
    """ZeRO as DeepSpeed is told of it; "auto" is filled in by the Trainer from its own arguments.

    Keys: https://www.deepspeed.ai/docs/config-json/
    """
    zero: dict[str, Any] = {"stage": sft.zero, "overlap_comm": ON_GPU, "contiguous_gradients": True}
    config: dict[str, Any] = {
        "bf16": {"enabled": IN_BF16},
        "zero_optimization": zero,
        "gradient_clipping": "auto",
        "gradient_accumulation_steps": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "train_batch_size": "auto",
    }
    if sft.zero == 3:
        zero["stage3_gather_16bit_weights_on_model_save"] = True
    if sft.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": ON_GPU}
        config["optimizer"] = {"type": "AdamW", "params": {"lr": "auto", "weight_decay": "auto"}}
    if sft.offload == "all":
        zero["offload_param"] = {"device": "cpu", "pin_memory": ON_GPU}
    return config


def zero_stage(trainer: Trainer) -> int:
    """The ZeRO stage that really was on; 0 without DeepSpeed."""
    engine = trainer.model_wrapped
    return engine.zero_optimization_stage() if hasattr(engine, "zero_optimization_stage") else 0


class LastStep(TrainerCallback):
    """The last step is reported too, whatever its number; each process must ask, for the loss is gathered."""

    def on_step_end(self, args, state, control, **kwargs) -> None:
        control.should_log |= state.global_step >= state.max_steps


class Report(TrainerCallback):
    """Progress and metrics to events, as they happen."""

    def __init__(self, emit: Emit, epoch_tokens: int) -> None:
        self.emit, self.epoch_tokens = emit, epoch_tokens
        self.since: tuple[float, float, int] | None = None  # time, epoch and step of the previous report

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self.emit("progress", step=state.global_step, total=state.max_steps, unit="steps")

    def on_log(self, args, state, control, logs, **kwargs) -> None:
        step = state.global_step
        if not isfinite(logs.get("loss", 0.0)):
            raise ValueError(
                f"the loss is {logs['loss']} at step {step} of {state.max_steps}: training has diverged; lower "
                f"sft.learning_rate, got {args.learning_rate:g}"
            )
        for name in ("loss", "learning_rate", "grad_norm"):
            if name in logs:
                self.emit(name, float(logs[name]), step=step)
        self.emit("memory_gib", memory_gib(), step=step)
        now = (time.time(), state.epoch, step)
        if self.since and step > self.since[2]:
            seconds = now[0] - self.since[0]
            self.emit("tokens_per_s", (now[1] - self.since[1]) * self.epoch_tokens / seconds, step=step)
            self.emit("seconds_left", (state.max_steps - step) * seconds / (step - self.since[2]), step=step)
        self.since = now
        self.emit("progress", step=step, total=state.max_steps, unit="steps")


def memory_gib() -> float:
    """Most memory taken so far: of this process's GPU, on a CPU of the process itself."""
    if ON_GPU:
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
