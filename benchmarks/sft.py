"""Tokens per second of fine-tuning: phase `sft` with both ways of batching, and the plain Hugging Face Trainer.

    python benchmarks/sft.py --rounds 3

Each contestant is a process of its own, in turns, on the same model, examples and threads, for the same
number of optimizer steps of the same number of examples. Tokens are those of the examples, never padding.
The plain Trainer is as people write it: bf16 by autocast, a shuffled set, batches padded to their longest.
On a CPU without bf16 both calculate in fp32.
Worked solutions of the pocket tasks; every fourth example holds four of them, so that lengths are mixed.
"""

import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
CONTESTANTS = ("plain Trainer", "sft, length", "sft, packed")


def main(
    model: Annotated[Path, typer.Option(help="A model directory.")] = ROOT / "data/pocket/model",
    examples: Annotated[int, typer.Option(help="Examples, seen once.")] = 1024,
    batch_size: Annotated[int, typer.Option(help="Examples per pass.")] = 16,
    threads: Annotated[int, typer.Option(help="CPU threads of each contestant.")] = 2,
    rounds: Annotated[int, typer.Option(help="Rounds; each contestant runs once in each.")] = 3,
    contestant: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Run every contestant in turns, and print medians with their ranges."""
    if contestant:
        sys.stdout.write(json.dumps(measure(contestant, model, examples, batch_size, threads)) + "\n")
        return
    found: dict[str, list[dict[str, float]]] = {name: [] for name in CONTESTANTS}
    for _ in range(rounds):
        for name in CONTESTANTS:
            command = [sys.executable, __file__, "--contestant", name, "--model", str(model)]
            for option, value in (("examples", examples), ("batch-size", batch_size), ("threads", threads)):
                command += [f"--{option}", str(value)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found[name].append(json.loads(done.stdout.splitlines()[-1]))
    plain = median(row["tokens"] / row["seconds"] for row in found["plain Trainer"])
    table = Table("", "tokens", "steps", "last loss", "tokens/s", "times the plain Trainer")
    for name, rows in found.items():
        rates = [row["tokens"] / row["seconds"] for row in rows]
        table.add_row(
            name,
            f"{rows[0]['tokens']:,}",
            str(rows[0]["steps"]),
            f"{rows[0]['loss']:.3f}",
            f"{median(rates):,.0f} ({min(rates):,.0f} to {max(rates):,.0f})",
            f"{median(rates) / plain:.2f}",
        )
    Console().print(table)


def measure(name: str, model: Path, count: int, batch_size: int, threads: int) -> dict[str, float]:
    """One contestant: seconds inside `train`, tokens of the examples, steps, last loss."""
    import torch

    torch.set_num_threads(threads)
    trainer, tokens = (plain if name == "plain Trainer" else ours)(name, model, count, batch_size, threads)
    began = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - began
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {"seconds": seconds, "tokens": tokens, "steps": trainer.state.global_step, "loss": losses[-1]}


def mixed(model: Path, count: int) -> list[dict[str, list[int]]]:
    """Examples of mixed lengths as token ids and labels."""
    from transformers import AutoTokenizer

    from workbench.core.prompts import Prompts
    from workbench.examples import answers

    lines = (ROOT / "data/pocket/tasks/pocket_steps.train.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    draw = random.Random(0)
    pairs = []
    for number in range(count):
        few = draw.sample(rows, 4 if number % 4 == 0 else 1)
        pairs.append((" ".join(r["question"] for r in few), " ".join(r["solution"] for r in few)))
    made = answers(AutoTokenizer.from_pretrained(model), pairs, Prompts())
    return [{"input_ids": e.ids, "labels": [-100] * e.first + e.ids[e.first :]} for e in made]


def ours(name: str, model: Path, count: int, batch_size: int, threads: int):
    """The Trainer of phase `sft`."""
    from workbench.config import SftConfig
    from workbench.jobs import Checkpoint, SftJob
    from workbench.phases.trainer import make_trainer
    from workbench.rundir import PhaseDir

    batching = name.removeprefix("sft, ")
    sft = SftConfig(epochs=1, batch_size=batch_size, accumulation=1, batching=batching, save_every_steps=10**6)
    start = Checkpoint(checkpoint_id="base", kind="base", path=str(model))
    job = SftJob(start=start, solutions=(), iteration=1, seed=0, sft=sft, threads=threads)
    examples = mixed(model, count)
    place = PhaseDir(Path(tempfile.mkdtemp()), 1, "sft")
    return make_trainer(job, place, lambda *args, **data: None, examples), sum(len(e["input_ids"]) for e in examples)


def plain(name: str, model: Path, count: int, batch_size: int, threads: int):
    """transformers' Trainer as its documentation calls it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainingArguments

    from workbench.phases.trainer import IN_BF16

    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    examples = mixed(model, count)
    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(), num_train_epochs=1, per_device_train_batch_size=batch_size, bf16=IN_BF16,
        learning_rate=2e-5, save_strategy="no", report_to=[], disable_tqdm=True, use_cpu=True, logging_steps=5,
        dataloader_pin_memory=False,
    )  # fmt: skip
    network = AutoModelForCausalLM.from_pretrained(model, dtype="float32")
    collate = DataCollatorForSeq2Seq(tokenizer)
    trainer = Trainer(model=network, args=arguments, train_dataset=examples, data_collator=collate)
    return trainer, sum(len(e["input_ids"]) for e in examples)


if __name__ == "__main__":
    typer.run(main)
