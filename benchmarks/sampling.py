"""Tokens per second and time to the first result of both engines, and of `generate` as people write it.

    python benchmarks/sampling.py --rounds 3

Each contestant is a process of its own, in turns, on the same model, questions, worked examples,
temperatures and threads. The loop asks one prompt after the other and so is given fewer of them; padded
batches are `generate` on left-padded prompts. Tokens are those of the answers, up to their end.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
TEMPERATURES = (0.2, 0.4, 0.6)
CONTESTANTS = ("vllm", "transformers", "padded batches of 64", "one by one")
LOOPED = 12
"""Questions for the loop."""


def main(
    model: Annotated[Path, typer.Option(help="A model directory.")] = ROOT / "data/pocket/model",
    questions: Annotated[int, typer.Option(help="Questions; each is asked at three temperatures.")] = 256,
    few_shot: Annotated[int, typer.Option(help="Worked examples before each question.")] = 4,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer.")] = 64,
    threads: Annotated[int, typer.Option(help="CPU threads of each contestant.")] = 2,
    rounds: Annotated[int, typer.Option(help="Rounds; each contestant runs once in each.")] = 3,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    contestant: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Run every contestant in turns, and print medians with their ranges."""
    if contestant:
        sys.stdout.write(
            json.dumps(measure(contestant, model, questions, few_shot, max_new_tokens, threads, dtype)) + "\n"
        )
        return
    found: dict[str, list[dict[str, float]]] = {name: [] for name in CONTESTANTS}
    for _ in range(rounds):
        for name in CONTESTANTS:
            command = [sys.executable, __file__, "--contestant", name, "--model", str(model), "--dtype", dtype]
            for option, value in (("questions", questions), ("few-shot", few_shot), ("threads", threads)):
                command += [f"--{option}", str(value)]
            started = time.time()
            command += ["--max-new-tokens", str(max_new_tokens)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.stderr.write(f"{name}: {done.stderr[-500:]}\n")
                continue
            row = json.loads(done.stdout.splitlines()[-1])
            found[name].append(row | {"first_s": row.pop("first_at") - started})
    table = Table("", "solutions", "tokens", "tokens/s", "first result after, s")
    for name, rows in found.items():
        if rows:
            table.add_row(
                name,
                str(rows[0]["solutions"]),
                str(rows[0]["tokens"]),
                spread([row["tokens"] / row["seconds"] for row in rows], "{:,.0f}"),
                spread([row["first_s"] for row in rows], "{:.1f}"),
            )
    Console().print(table)


def spread(values: list[float], form: str) -> str:
    """Median with its range."""
    return f"{form.format(median(values))} ({form.format(min(values))} to {form.format(max(values))})"


def measure(
    name: str, model: Path, questions: int, few_shot: int, max_new_tokens: int, threads: int, dtype: str
) -> dict[str, float]:
    """One contestant: seconds of generating once warm, tokens, and when the first answer was there."""
    import torch

    torch.set_num_threads(threads)
    tasks = ROOT / "data/pocket/tasks"
    train = [json.loads(line) for line in (tasks / "pocket_steps.train.jsonl").read_text().splitlines()]
    shots = "".join(f"Question: {r['question']}\nAnswer: {r['solution']}\n\n" for r in train[:few_shot])
    asked = [r["question"] for r in train[few_shot : few_shot + (LOOPED if name == "one by one" else questions)]]
    prompts = [f"{shots}Question: {question}\nAnswer:" for question in asked]
    if name in ("vllm", "transformers"):
        answer = by_engine(name, model, max_new_tokens, threads, dtype)
    else:
        answer = by_generate(model, max_new_tokens, dtype, batch=64 if name.startswith("padded") else 1)
    answer(prompts[:1])
    first = time.time()
    began = time.perf_counter()
    tokens = answer(prompts)
    return {
        "first_at": first,
        "seconds": time.perf_counter() - began,
        "tokens": tokens,
        "solutions": len(prompts) * len(TEMPERATURES),
    }


def by_engine(name: str, model: Path, max_new_tokens: int, threads: int, dtype: str):
    """The workbench's engines, fed as phase `sample` feeds them."""
    from workbench.config import EngineConfig
    from workbench.engines import Request, batch_size, open_engine

    config = EngineConfig(kind=name, dtype=dtype)
    engine = open_engine(model, config, threads)

    def answer(prompts: list[str]) -> int:
        requests = [Request(p, t, 3 * i + j) for i, p in enumerate(prompts) for j, t in enumerate(TEMPERATURES)]
        size, made = batch_size(config), []
        for at in range(0, len(requests), size):
            batch = requests[at : at + size]
            made += engine.generate(batch, max_new_tokens=max_new_tokens, stop=("\nQuestion:",))
        return sum(generation.num_tokens for generation in made)

    return answer


def by_generate(model: Path, max_new_tokens: int, dtype: str, batch: int):
    """transformers' own `generate`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    network = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype)).eval()

    def answer(prompts: list[str]) -> int:
        tokens = 0
        for temperature in TEMPERATURES:
            for at in range(0, len(prompts), batch):
                inputs = tokenizer(prompts[at : at + batch], return_tensors="pt", padding=True)
                made = network.generate(
                    **inputs,
                    do_sample=True,
                    temperature=temperature,
                    max_new_tokens=max_new_tokens,
                    stop_strings=["\nQuestion:"],
                    tokenizer=tokenizer,
                )
                new = made[:, inputs["input_ids"].shape[1] :]
                tokens += int((new != tokenizer.pad_token_id).sum())
        return tokens

    return answer


if __name__ == "__main__":
    typer.run(main)
