"""Grading 5,000 GSM8K solutions: `workbench grade`, and math-verify's own parse and verify, in turns.

    python benchmarks/grading.py [--file ../shared/datasets/gsm8k/train.jsonl] [--rows 5000] [--rounds 5]

Each is a process of its own, timed whole, imports and reading included, on the same rows: the worked solutions of
the file, each with the answer behind its #### as the reference. Every row is right, and one graded wrong is the
grader's error. math-verify is called as its README does, with its time limits off, which only makes it faster.
Its figure without imports and reading is given too.
"""

import json
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
OURS, PEER, PEER_WORK = "workbench grade", "math-verify", "math-verify, parse and verify only"


def main(
    file: Annotated[Path, typer.Option(help="GSM8K: JSON Lines with question and answer.")] = ROOT.parent
    / "shared/datasets/gsm8k/train.jsonl",
    rows: Annotated[int, typer.Option(help="Solutions to grade.")] = 5000,
    rounds: Annotated[int, typer.Option(help="Rounds; each contestant runs once in each.")] = 5,
    peer: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Run both in turns, and print medians with their ranges and how many rows each grades right."""
    if peer:
        sys.stdout.write(json.dumps(verify_all(file)) + "\n")
        return
    if not file.exists():
        sys.stderr.write(f"{file}: no such file. Name GSM8K's train.jsonl with --file.\n")
        raise typer.Exit(2)
    found: dict[str, list[float]] = {OURS: [], PEER: [], PEER_WORK: []}
    right: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as scratch:
        solutions = Path(scratch) / "solutions.jsonl"
        graded = Path(scratch) / "graded.jsonl"
        n = write_solutions(file, solutions, rows)
        program = str(Path(sys.executable).with_name("workbench"))
        for _ in range(rounds):
            seconds, _ = timed([program, "grade", str(solutions), "--format", "number", "--out", str(graded)])
            found[OURS].append(seconds)
            right[OURS] = sum(json.loads(line)["is_correct"] for line in graded.read_text().splitlines())
            seconds, printed = timed([sys.executable, __file__, "--peer", "--file", str(solutions)])
            verdicts = json.loads(printed.splitlines()[-1])
            found[PEER].append(seconds)
            found[PEER_WORK].append(verdicts["seconds"])
            right[PEER] = right[PEER_WORK] = verdicts["right"]
    table = Table("", "seconds", "range", "times ours", "graded right", title=f"{n} solutions, {rounds} rounds")
    for name, all_seconds in found.items():
        ratios = [seconds / ours for seconds, ours in zip(all_seconds, found[OURS], strict=True)]
        table.add_row(
            name, f"{median(all_seconds):.2f}", f"{min(all_seconds):.2f} to {max(all_seconds):.2f}",
            f"{median(ratios):.2f}", f"{right[name]} ({100 * right[name] / n:.2f} %)",
        )  # fmt: skip
    Console().print(table)


def write_solutions(file: Path, out: Path, rows: int) -> int:
    """The first rows of GSM8K as solutions with references; how many there are."""
    answers = [json.loads(line)["answer"] for line in file.read_text(encoding="utf-8").splitlines()[:rows]]
    made = [{"solution": answer, "reference": answer.rpartition("####")[2].strip()} for answer in answers]
    out.write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")
    return len(made)


def timed(command: list[str]) -> tuple[float, str]:
    """Wall seconds of a command, and what it printed."""
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    if done.returncode:
        sys.stderr.write(f"{command[0]} failed:\n{done.stderr[-2000:]}\n")
        raise typer.Exit(1)
    return seconds, done.stdout


def verify_all(file: Path) -> dict[str, float]:
    """In the peer's process: seconds of parse and verify over the rows, and how many it calls right."""
    from math_verify import parse, verify

    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    started = time.perf_counter()
    right = 0
    for row in rows:
        gold = parse(row["reference"], parsing_timeout=None)
        right += verify(gold, parse(row["solution"], parsing_timeout=None), timeout_seconds=None)
    return {"seconds": time.perf_counter() - started, "right": right}


if __name__ == "__main__":
    typer.run(main)
