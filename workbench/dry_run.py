"""`workbench run --dry-run`: everything about a run that can be said without weights, and the plan of it.

Settings that are wrong end it with exit code 2. What this machine lacks is said, and is no mistake: rows, a package, a
model still on the hub. Memory and disk are a mistake where the run is meant for this machine: it has a GPU, or the
model lies here. Else the plan is made for an assumed GPU, as on a laptop or a cluster's front end.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from workbench import checkpoints, checks, origins, preflight
from workbench.config import RunConfig
from workbench.engines import engine_kind
from workbench.estimate import Estimate, assumptions, estimate
from workbench.jobs import TaskSource
from workbench.launch import resolved
from workbench.machine import Gpu, Machine, hosts, this_machine
from workbench.memory import training
from workbench.plan import plan
from workbench.rundir import RunDir
from workbench.settings import NotHere, facts, setting
from workbench.shapes import Shape, find_shape
from workbench.tasks import check_source, recorded_rows

ASSUMED = Gpu("A100 80 GB, assumed", 79.0)
COUNTS = (1, 2, 4, 8, 16)
"""Processes for which the memory of fine-tuning with ZeRO is shown."""
UNREAD = {
    "merge.drop_rate": "p is not stated in the paper; its authors' README merges with mask rate 0.2",
    "sample.num_samples": "solutions per question and temperature are not stated",
    "sample.max_new_tokens": "not read; the authors' scripts have 512",
    "prompt.format": "not read; the authors' scripts send plain instruction texts, no chat template",
    "sft.schedule": "not read; the authors' train_qwen.sh has cosine",
    "sft.weight_decay": "not read; the authors' train_qwen.sh has 0",
    "sft.processes": "how many GPUs the paper used was not read; batch_size is that of each",
    "sft.max_length": "not read; this workbench's choice",
    "evaluate.max_new_tokens": "the decoding of the paper's ID evaluation is not stated; its authors' script is greedy",
    "evaluate.temperature": "the temperature of pass@k is not stated",
    "eval_tasks": "whether the other train task's test set is OOD in the paper was not read",
    "analyze.num_examples": "how many examples importance was measured on is not stated, nor is the norm of Eq. 4",
}
"""Settings of which the paper is silent, or could not be read, and what their value rests on."""
SENTENCES = {
    "problems": ("Wrong", "red"),
    "refused_here": ("Not on this machine", "yellow"),
    "before_launch": ("Before launch", ""),
    "notes": ("Note", "yellow"),
}
"""What is said in sentences, and how."""
UNREAD_OF_TEACHER = "section 5.4 could not be read: teacher, students and train task are this workbench's choice"


def run(config: RunConfig, settings: Mapping[str, Any], root: Path, console: Console, *, as_json: bool) -> int:
    """Print the plan of a run, with what `origins.told` of its settings; the exit code: 0, or 2 where it could not go
    well."""
    found = report(config, root)
    found = {**settings, **found, "notes": settings["notes"] + found["notes"]}
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        _print(found, console)
    return 2 if found["problems"] else 0


def report(config: RunConfig, root: Path) -> dict[str, Any]:
    """All that can be said of a run without weights, as JSON."""
    wrong, missing = checks.findings(config, root)
    machine = this_machine(root)
    is_meant = bool(machine.gpus) or _is_here(config.model)
    planned = machine if is_meant else Machine((ASSUMED,), float("inf"), float("inf"))
    kind = _engine(config, is_meant)
    found = None if wrong else estimate(config, planned, kind)
    refused = [] if wrong or not found else preflight.problems(config, machine, _engine(config, True), root)
    return {
        "problems": wrong + (refused if is_meant else []),
        "before_launch": missing + _to_fetch(config),
        "refused_here": [] if is_meant else refused,
        "notes": [] if wrong else _notes(config, found),
        "model": _about_model(config.model),
        "teacher": _about_model(config.teacher.model) if config.teacher.model else None,
        "tasks": [] if wrong else _about_tasks(config),
        "machine": {"is_meant": is_meant, "engine": kind, "planned_for": _words_of(planned)},
        "phases": [f"{place.iteration} {place.phase}" for place, _ in _planned(config, root)],
        "estimate": _about_estimate(config, found) if found else None,
        "assumptions": assumptions(planned, config.model) if found else [],
        "unread": _unread(config),
    }


def _planned(config: RunConfig, root: Path) -> list[Any]:
    whole = resolved(config, root)
    return list(plan(RunDir(root / "runs" / "dry-run"), whole, whole.model, threads=1))


def _is_here(model: str) -> bool:
    """Whether a model is a directory on this machine."""
    return Path(checkpoints.absolute_model(model)).is_dir()


def _engine(config: RunConfig, is_meant: bool) -> str:
    """transformers or vllm; a GPU machine elsewhere is taken to have vLLM, which `make` installs there."""
    if config.engine.kind == "auto" and not is_meant:
        return "vllm"
    try:
        return engine_kind(config.engine)
    except NotHere:
        return config.engine.kind


def _words_of(machine: Machine) -> str:
    if not machine.gpus:
        return f"this machine, {machine.memory_gib:.0f} GiB of memory free, no GPU"
    first = machine.gpus[0]
    return f"{len(machine.gpus)} x {first.name}, {first.memory_gib:.0f} GiB"


def _to_fetch(config: RunConfig) -> list[str]:
    """What a launch would get from the hub."""
    said = []
    local_teacher = config.teacher.model if not config.teacher.url else None
    for what, name in (("model", config.model), ("teacher", local_teacher)):
        if name and not _is_here(name):
            shape = find_shape(name)
            size = f", {shape.num_parameters * shape.item_bytes / 1e9:.1f} GB" if shape else ""
            said.append(f"{what} {name}: comes from the hub at launch unless its cache has it{size}")
    asked = config.teacher.format if config.teacher.model and not config.teacher.url else config.prompt.format
    if "chat" in (asked, config.prompt.format) and not _is_here(local_teacher or config.model):
        said.append("the chat template comes with the model and is checked when that is here")
    for name, split in _wanted(config):
        try:
            if check_source(TaskSource(task=name, datasets=config.datasets), split) is None:
                said.append(f"{name}, {split}: comes from the hub at launch")
        except ValueError:
            continue  # said by the checks
    return said


def _wanted(config: RunConfig) -> list[tuple[str, str]]:
    return [(config.train_task, "train"), *((t, "test") for t in (config.train_task, *config.eval_tasks))]


def _about_model(name: str) -> dict[str, Any]:
    shape = find_shape(name)
    if shape is None:
        return {"name": name, "num_parameters": None, "origin": "its config.json is not to be had here"}
    return {
        "name": name,
        "num_parameters": shape.num_parameters,
        "is_exact": shape.is_exact,
        "origin": shape.origin,
    }


def _about_tasks(config: RunConfig) -> list[dict[str, Any]]:
    """Each split that is needed: how many questions, and where they are."""
    rows = []
    for name, split in _wanted(config):
        test = "ID" if name == config.train_task else "OOD"
        try:
            task = check_source(TaskSource(task=name, datasets=config.datasets), split)
        except ValueError:
            task = None
        count = len(task.questions) if task else recorded_rows(name, split)
        rows.append(
            {
                "task": Path(name).stem,
                "domain": split if split == "train" else test,
                "num_questions": count,
                "is_here": task is not None,
            }
        )
    return rows


def _notes(config: RunConfig, found: Estimate | None) -> list[str]:
    """What a person should know, and what is no mistake."""
    said = checks.remarks(config, missing_ok=True)
    if found is None:
        said.append("the model's shape is not to be had here (no network?): memory, hours and disk are not estimated")
        return said
    length = found.prompt_tokens + config.sample.max_new_tokens
    if length > 0.75 * found.context and "sample" in found.phases:
        said.append(
            f"a sampling prompt of {config.sample.few_shot} worked examples is about {found.prompt_tokens} tokens, "
            f"with an answer {length}, near the {found.context} that the model takes; a draw of longer examples "
            "would pass them: lower sample.few_shot then"
        )
    return said


def _about_estimate(config: RunConfig, found: Estimate) -> dict[str, Any]:
    phases = {
        name: {f"{part}_gib": size for part, size in asdict(phase.memory).items()}
        | {"total_gib": phase.memory.total, "limit_gib": phase.limit_gib, "tokens": phase.tokens}
        | {"gpu_hours": phase.gpu_hours}
        for name, phase in found.phases.items()
    }
    shape = find_shape(config.model)
    return {
        "phases": phases,
        "gpu_hours": found.gpu_hours,
        "disk_gb": dict(found.disk_gb) | {"total": found.total_disk_gb},
        "sft_gib_by_processes": _by_processes(config, shape, found) if config.sft.zero and shape else {},
    }


def _by_processes(config: RunConfig, shape: Shape, found: Estimate) -> dict[str, float]:
    """Memory of each GPU in fine-tuning, by the number of GPUs it is split over."""
    if not found.machine.gpus:
        return {}
    machines = max(1, len(hosts(config.sft.hostfile)))
    return {
        str(count): training(
            shape, config.sft, processes=count * machines, here=count, on_gpu=True, length=found.longest_example
        ).total
        for count in COUNTS
    }


def _unread(config: RunConfig) -> list[dict[str, Any]]:
    """For the paper's models: the settings that do not rest on the paper."""
    if config.model not in facts("models"):
        return []
    rows = [{"setting": name, "value": setting(config, name), "why": why} for name, why in UNREAD.items()]
    if config.teacher.model:
        rows.append({"setting": "teacher.model", "value": config.teacher.model, "why": UNREAD_OF_TEACHER})
    return rows


def _print(found: dict[str, Any], console: Console) -> None:
    """The report for people."""
    for line in origins.lines(found):
        console.print(line, markup=False, soft_wrap=True)
    for name, (title, style) in SENTENCES.items():
        for line in found[name]:
            console.print(f"{title}: {line}", style=style, markup=False, soft_wrap=True)
    for what in ("model", "teacher"):
        if about := found[what]:
            count = f"{about['num_parameters']:,} parameters" if about["num_parameters"] else "size unknown"
            console.print(f"{what} {about['name']}: {count} ({about['origin']})", markup=False, soft_wrap=True)
    for task in found["tasks"]:
        where = "here" if task["is_here"] else "not here"
        console.print(
            f"{task['domain']:6}{task['task']}: {task['num_questions'] or '?'} questions, {where}", markup=False
        )
    console.print(f"phases: {', '.join(found['phases'])}", markup=False, soft_wrap=True)
    if found["estimate"]:
        _print_estimate(found, console)
    for line in found["assumptions"]:
        console.print(f"assumed: {line}", markup=False, soft_wrap=True)
    for row in found["unread"]:
        console.print(
            f"not the paper's word: {row['setting']} = {json.dumps(row['value'])}: {row['why']}",
            markup=False,
            soft_wrap=True,
        )
    console.print("Settings are wrong." if found["problems"] else "Settings are right.", markup=False)


def _print_estimate(found: dict[str, Any], console: Console) -> None:
    about = found["estimate"]
    console.print(f"for {found['machine']['planned_for']}, engine {found['machine']['engine']}:", markup=False)
    phases, table = about["phases"], Table("GiB at the peak", show_edge=False)
    for name in phases:
        table.add_column(name, justify="right")
    for part in ("weights", "gradients", "optimizer", "activations", "kv_cache", "other", "total", "host"):
        sizes = [phase[f"{part}_gib"] for phase in phases.values()]
        table.add_row(part.replace("kv_", "KV "), *(f"{size:.2f}" if size < 10 else f"{size:.1f}" for size in sizes))
    table.add_row("million tokens", *(f"{phase['tokens'] / 1e6:.1f}" for phase in phases.values()))
    table.add_row("GPU hours", *(f"{phase['gpu_hours']:.2f}" for phase in phases.values()))
    console.print(table)
    if by := about["sft_gib_by_processes"]:
        sizes = ", ".join(f"{count}: {size:.0f}" for count, size in by.items())
        console.print(f"sft, GiB of each GPU by their number: {sizes}", markup=False, soft_wrap=True)
    disk = ", ".join(f"{name} {size:.1f}" for name, size in about["disk_gb"].items())
    console.print(f"disk, GB: {disk}", markup=False, soft_wrap=True)
    console.print(f"GPU hours: {about['gpu_hours']:.1f}", markup=False)
