"""Phase `sft`: full fine-tuning on the kept solutions, with the Hugging Face Trainer.

Loss on response tokens only. Weights are bf16 with an fp32 master copy. A killed phase continues from
its last optimizer checkpoint.
"""

import logging
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from workbench.events import Emit, read_lines
from workbench.examples import answers
from workbench.jobs import SftJob
from workbench.phases.optimizer import MasterAdamW
from workbench.phases.process import main
from workbench.rundir import PhaseDir

logger = logging.getLogger(__name__)


def run(job: SftJob, place: PhaseDir, emit: Emit) -> dict[str, Any]:
    """Fine-tune and write `checkpoint/`; return counts and the last loss."""
    started = time.time()
    torch.set_num_threads(job.threads)
    tokenizer = AutoTokenizer.from_pretrained(job.start.path)
    examples, left_out = training_examples(job, tokenizer)
    model = AutoModelForCausalLM.from_pretrained(job.start.path, dtype="auto")
    dtype = model.dtype
    trainer = make_trainer(job, place, emit, model.float(), examples)
    scratch = place.path / "trainer"
    trainer.train(resume_from_checkpoint=last_complete(scratch))
    save(trainer, tokenizer, dtype, place.checkpoint)
    shutil.rmtree(scratch, ignore_errors=True)
    history = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    files = list(place.checkpoint.glob("*.safetensors"))
    return {
        "num_solutions": len(examples),
        "num_left_out": left_out,
        "num_steps": trainer.state.global_step,
        "num_tokens": sum(len(e["input_ids"]) for e in examples) * job.sft.epochs,
        "loss": history[-1] if history else None,
        "num_parameters": model.num_parameters(),
        "bytes": sum(file.stat().st_size for file in files),
        "seconds": time.time() - started,
    }


def training_examples(job: SftJob, tokenizer: PreTrainedTokenizerBase) -> tuple[list[dict[str, list[int]]], int]:
    """Token ids and labels of the kept solutions, in a fixed order; how many were too long.

    Raises:
        ValueError: nothing to train on.
    """
    kept = [row for path in job.solutions for row in read_lines(Path(path))[0] if row["kept"]]
    kept.sort(key=lambda row: (row["question_id"], row["sample"], row["text"]))
    if not kept:
        raise ValueError(
            "no sampled solution was correct, so there is nothing to fine-tune on; "
            "raise num_questions, num_samples or the temperatures, or take a stronger model"
        )
    examples = [
        {"input_ids": example.ids, "labels": [-100] * example.first + example.ids[example.first :]}
        for example in answers(tokenizer, [(row["question"], row["text"]) for row in kept])
    ]
    fitting = [example for example in examples if len(example["input_ids"]) <= job.sft.max_length]
    if not fitting:
        raise ValueError(f"every kept solution is longer than sft.max_length={job.sft.max_length} tokens; raise it")
    return fitting, len(examples) - len(fitting)


def collate(examples: Sequence[dict[str, list[int]]]) -> dict[str, Tensor]:
    """Right-padded batch: input_ids, attention_mask, labels, each (batch, tokens)."""
    ids = [torch.tensor(example["input_ids"]) for example in examples]
    labels = [torch.tensor(example["labels"]) for example in examples]
    return {
        "input_ids": pad_sequence(ids, batch_first=True),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
        "labels": pad_sequence(labels, batch_first=True, padding_value=-100),
    }


def make_trainer(
    job: SftJob, place: PhaseDir, emit: Emit, model: PreTrainedModel, examples: list[dict[str, list[int]]]
) -> Trainer:
    """The Trainer with our optimizer; `model` comes in fp32 and is turned into bf16."""
    sft = job.sft
    arguments = TrainingArguments(
        output_dir=str(place.path / "trainer"),
        num_train_epochs=sft.epochs,
        per_device_train_batch_size=sft.batch_size,
        gradient_accumulation_steps=sft.accumulation,
        learning_rate=sft.learning_rate,
        lr_scheduler_type=sft.schedule,
        warmup_steps=sft.warmup_ratio,
        max_grad_norm=sft.max_grad_norm,
        train_sampling_strategy="group_by_length",
        seed=job.seed + job.iteration,
        save_strategy="steps",
        save_steps=sft.save_every_steps,
        save_total_limit=1,
        logging_strategy="steps",
        logging_steps=5,
        logging_first_step=True,
        report_to=[],
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    model.to("cuda" if torch.cuda.is_available() else "cpu")  # before the optimizer copies the weights
    masters = [p.detach().clone() for p in model.parameters()]
    model.to(torch.bfloat16)
    optimizer = MasterAdamW(model.parameters(), sft.learning_rate, sft.weight_decay, masters)
    return Trainer(
        model=model,
        args=arguments,
        train_dataset=examples,
        data_collator=collate,
        optimizers=(optimizer, None),
        callbacks=[_Report(emit, sum(len(e["input_ids"]) for e in examples))],
    )


class _Report(TrainerCallback):
    """Progress and metrics to events, as they happen."""

    def __init__(self, emit: Emit, epoch_tokens: int) -> None:
        self.emit, self.epoch_tokens = emit, epoch_tokens
        self.since: tuple[float, float] | None = None  # time and epoch of the previous report

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self.emit("progress", step=state.global_step, total=state.max_steps, unit="steps")

    def on_log(self, args, state, control, logs, **kwargs) -> None:
        names = {"loss": "loss", "learning_rate": "learning_rate", "grad_norm": "grad_norm"}
        for key in names.keys() & logs.keys():
            self.emit(names[key], float(logs[key]), step=state.global_step)
        now = (time.time(), state.epoch)
        if self.since and now[1] > self.since[1]:
            rate = (now[1] - self.since[1]) * self.epoch_tokens / (now[0] - self.since[0])
            self.emit("tokens_per_s", rate, step=state.global_step)
        self.since = now
        self.emit("progress", step=state.global_step, total=state.max_steps, unit="steps")


def last_complete(scratch: Path) -> str | None:
    """The newest optimizer checkpoint that was written to the end; the Trainer's state comes last."""
    done = [path.parent for path in scratch.glob("checkpoint-*/trainer_state.json")]
    return str(max(done, key=lambda path: int(path.name.split("-")[1]))) if done else None


def save(trainer: Trainer, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype, out: Path) -> None:
    """Write the master weights in the start checkpoint's dtype; the directory appears when complete."""
    scratch = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(scratch, ignore_errors=True)
    model = trainer.model.float()
    with torch.no_grad():
        torch._foreach_copy_(list(model.parameters()), trainer.optimizer.optimizer.masters)
    model.to(dtype).save_pretrained(scratch)
    tokenizer.save_pretrained(scratch)
    shutil.rmtree(out, ignore_errors=True)
    scratch.rename(out)


if __name__ == "__main__":
    main(SftJob, run)
