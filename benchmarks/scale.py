"""A run on a Ray cluster against the same run without one, and a large run reckoned on paper.

    python benchmarks/scale.py measure --rounds 2
    python benchmarks/scale.py plan

`measure`: seconds of each phase of a small pocket run, by its own files: on this machine, and on a cluster of two
nodes with one core each (`ray.cluster_utils`), with one copy of the engine and with two; in turns, one thread each. All
have the same solutions, merges and answers, which is checked. `plan`: Llama-2-7B on GSM8K over 8 and 64 GPUs.
"""

import os
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from workbench import launch
from workbench.config import RunConfig
from workbench.core.methods import kinds_made
from workbench.engines import BATCH
from workbench.estimate import _Work, assumptions, estimate
from workbench.events import read_lines
from workbench.machine import Gpu, Machine
from workbench.rundir import RunDir, find_run, read_json
from workbench.settings import build_config, load_settings
from workbench.shapes import find_shape

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)
out = Console()
SMALL = {
    "iterations": 1, "threads": 1, "engine.kind": "transformers", "sample.max_new_tokens": 64,
    "evaluate.max_new_tokens": 64, "evaluate.num_samples": 0, "analyze.num_examples": 16,
}  # fmt: skip
PHASES = ("evaluate 0", "sample 1", "sft 1", "merge 1", "evaluate 1", "analyze 1")
CONTESTANTS = {"this machine": None, "Ray, 1 copy": 1, "Ray, 2 copies": 2}
INSIDE_GB_S, LINK_GB_S = 200, 25
"""Assumed of each GPU: inside a machine of eight, and its share of the network between machines (200 Gb/s)."""
FILES_GB_S = 5
"""Assumed of the shared file system, in all."""
WRITER_GB_S = 1
"""Of the one process that writes a merge, with its hash: somewhat less than was measured on two cores."""


@app.command()
def measure(
    rounds: Annotated[int, typer.Option(help="Rounds; each contestant runs once in each.")] = 2,
    questions: Annotated[int, typer.Option(help="Train questions, and test questions of each task.")] = 200,
    batch_size: Annotated[int, typer.Option(help="Sequences of a batch.")] = 50,
) -> None:
    """Seconds of each phase, medians with their range."""
    config = {"num_questions": questions, "eval_questions": questions, "engine.batch_size": batch_size} | SMALL
    found: dict[str, list[dict[str, float]]] = {name: [] for name in CONTESTANTS}
    same = set()
    with tempfile.TemporaryDirectory() as home, two_nodes() as dashboard:
        for _ in range(rounds):
            for name, copies in CONTESTANTS.items():
                ray = {"on": "ray", "ray.address": dashboard, "ray.replicas": copies} if copies else {}
                run = finished(build_config(load_settings("pocket"), config | ray), Path(home))
                found[name].append(seconds(run))
                same.add(numbers(run))
    table = Table("s", *PHASES, "whole run")
    for name, rows in found.items():
        table.add_row(name, *(spread([row[phase] for row in rows]) for phase in (*PHASES, "whole run")))
    out.print(table)
    out.print("all runs gave the same numbers" if len(same) == 1 else "THE RUNS DIFFER IN THEIR NUMBERS", style="bold")
    alone, one, two = ([row["whole run"] for row in found[name]] for name in CONTESTANTS)
    asked = [median(row["sample 1"] + row["evaluate 0"] + row["evaluate 1"] for row in found[n]) for n in CONTESTANTS]
    out.print(
        f"overhead of Ray with one copy: {median(one) - median(alone):.1f} s a run, {median(one) / median(alone):.2f} "
        f"times; two copies against one: the run {median(one) / median(two):.2f} times as fast, sampling and "
        f"evaluation {asked[1] / asked[2]:.2f} times"
    )


@contextmanager
def two_nodes() -> Iterator[str]:
    """The dashboard of a cluster of two nodes with one core each."""
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    head = {"num_cpus": 1, "include_dashboard": True, "dashboard_host": "127.0.0.1", "dashboard_port": port}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    cluster.add_node(num_cpus=1)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        cluster.shutdown()


def finished(config: RunConfig, home: Path) -> RunDir:
    """The run, once it is done."""
    run = find_run(home, launch.launch(config, home))
    while launch.observed_status(run)[0] not in launch.ENDED or launch.is_alive(run):
        time.sleep(0.5)
    status, error = launch.observed_status(run)
    if status != "done":
        raise RuntimeError(f"{run.run_id} {status}: {error}")
    return run


def seconds(run: RunDir) -> dict[str, float]:
    """Of each phase as it was asked for and ended, and from the launch to the end."""
    rows = {f"{p.phase} {p.iteration}": read_json(p.result)["cost"]["seconds"] for p in run.phases()}
    return rows | {"whole run": read_json(run.status)["since"] - read_json(run.config)["created_at"]}


def numbers(run: RunDir) -> tuple[Any, ...]:
    """What must be the same in every run."""
    rows = [row for p in run.phases() for row in read_lines(p.solutions)[0] + read_lines(p.outcomes)[0]]
    texts = tuple(sorted((row.get("task", ""), row["question_id"], row["sample"], row["text"]) for row in rows))
    return texts, read_json(run.phase(1, "merge").result)["summary"]["sha256"]["model.safetensors"]


def spread(values: list[float]) -> str:
    """Median with its range."""
    return f"{median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


@app.command()
def plan(
    preset: Annotated[str, typer.Option(help="A shipped preset.")] = "llama2-7b-gsm8k",
    batch_size: Annotated[int, typer.Option(help="Sequences of a batch: engine.batch_size.")] = BATCH["vllm"],
) -> None:
    """Tokens, hours and bytes of a large run, by arithmetic alone."""
    config = build_config(load_settings(preset), {"engine.batch_size": batch_size})
    machine = Machine(tuple([Gpu("NVIDIA A100 80GB", 80.0)] * 8), 1000.0, 1e4)
    found = estimate(config, machine, "vllm")
    shape = find_shape(config.model)
    checkpoint = shape.item_bytes * shape.num_parameters / 1e9
    table = Table("", "tokens", "GPU hours", "hours on 8", "hours on 64", "and moves there", "saturates at")
    for name, phase in found.phases.items():
        rows = {count: reckon(name, phase, config, checkpoint, count) for count in (8, 64)}
        hours = [f"{rows[count][0]:.2f}" for count in (8, 64)]
        table.add_row(name, f"{phase.tokens:,.0f}", f"{phase.gpu_hours:.1f}", *hours, *rows[64][1:])
    totals = [sum(reckon(n, p, config, checkpoint, count)[0] for n, p in found.phases.items()) for count in (8, 64)]
    table.add_row("whole run", "", f"{found.gpu_hours:.1f}", *(f"{hours:.2f}" for hours in totals), "", "")
    out.print(table)
    for line in [
        f"a checkpoint is {checkpoint:.1f} GB; {config.iterations} iterations of {config.method}",
        *assumptions(machine, config.model),
        f"{INSIDE_GB_S} GB/s between the GPUs of a machine of eight, {LINK_GB_S} GB/s a GPU between machines, shared "
        f"file system {FILES_GB_S} GB/s, one writer {WRITER_GB_S} GB/s",
        "sft: 6 N bytes a pass and GPU under ZeRO-3 (weights gathered twice, gradients scattered, 2 bytes each), which "
        "hides behind the arithmetic as far as that takes longer",
        f"the effective batch is sft.batch_size x sft.accumulation x processes, {config.sft.batch_size} x "
        f"{config.sft.accumulation} x processes: more than {config.sft.batch_size * config.sft.accumulation} processes "
        "cannot keep that of one process",
    ]:
        out.print(f"- {line}", soft_wrap=True, highlight=False)


def reckon(name: str, phase: Any, config: RunConfig, checkpoint: float, count: int) -> tuple[float, str, str]:
    """Hours of one phase of all iterations on `count` GPUs, what it moves, and where more GPUs stop helping."""
    made, iterations = len(kinds_made(config.method)), config.iterations
    if name in ("sample", "evaluate"):
        width = config.engine.tensor_parallel
        loads = iterations if name == "sample" else 1 + iterations * made
        work = _Work.of(config)
        asked = work.solutions if name == "sample" else work.answers
        batches = ceil(asked / (config.engine.batch_size or BATCH["vllm"]))
        busy = min(count // width, batches)
        rounds = ceil(batches / busy) / batches  # the last round may be half empty
        moved = loads * busy * checkpoint
        hours = phase.gpu_hours / width * rounds + moved / FILES_GB_S / 3600
        return hours, f"{moved:,.0f} GB of weights", f"{batches * width} GPUs: {batches} batches"
    if name == "sft":
        work = _Work.of(config)
        passes = phase.tokens / (work.question + work.solution) / (config.sft.batch_size * count)
        bytes_a_pass = 3 * checkpoint
        talk = passes * bytes_a_pass / (INSIDE_GB_S if count <= 8 else LINK_GB_S) / 3600
        alone = phase.gpu_hours / count
        note = "the network" if talk > alone else "the effective batch, see below"
        return max(talk, alone), f"{passes * bytes_a_pass / 1000:,.0f} TB a GPU", note
    if name == "merge":
        moved = iterations * 3 * checkpoint
        return iterations * checkpoint / WRITER_GB_S / 3600, f"{moved:,.0f} GB read, a third written", "the one writer"
    return phase.gpu_hours / 2, f"{iterations * 2 * checkpoint:,.0f} GB of weights", "2 GPUs: a task for each text set"


if __name__ == "__main__":
    app()
