"""The commands `grade`, `regrade` and `contamination`."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from workbench.grading import Format
from workbench.rundir import home

out, err = Console(highlight=False), Console(stderr=True, highlight=False)


def grade(
    file: Annotated[Path, typer.Argument(help='JSON Lines with the fields "reference" and "solution".')],
    answer_format: Annotated[
        Format, typer.Option("--format", help="How answers are written; auto looks at each reference.")
    ] = "auto",
    result: Annotated[
        Path | None, typer.Option("--out", help="Where the rows go, with answer, is_correct and rule added.")
    ] = None,
) -> None:
    """Find the final answer of each solution and compare it with the reference."""
    from workbench.core.statistics import wilson_interval
    from workbench.grading import grade_file

    if not file.is_file():
        raise ValueError(f"no file {file}")
    found = grade_file(file, result, answer_format)
    low, high = wilson_interval(found["right"], found["rows"])
    out.print(
        f"{found['right']} of {found['rows']} right: {found['right'] / found['rows']:.1%} "
        f"(95 % {low:.1%} to {high:.1%}); {found['without_answer']} without an answer"
    )
    if result:
        out.print(f"written to {result}")


def regrade(
    run_id: Annotated[str, typer.Argument(metavar="RUN", help="A run's id; `workbench list` shows them.")],
) -> None:
    """Grade what a run has recorded with the grader of today; nothing is sampled, every change is recorded."""
    from workbench.regrade import regrade as grade_again

    found = grade_again(home(), run_id)
    out.print(f"{found['changed']} of {found['rows']} grades changed")
    for score in found["scores"]:
        interval = f"95 % {score['ci_low']:.1%} to {score['ci_high']:.1%}, n = {score['num_questions']}"
        out.print(f"{score['checkpoint_id']} on {score['task']}: now {score['accuracy']:.1%} ({interval})")


def contamination(
    train: Annotated[str, typer.Argument(help="Train task: a name, a directory, or a task file.")],
    tests: Annotated[list[str], typer.Argument(help="Tasks whose test splits are looked for in it.")],
    datasets: Annotated[Path | None, typer.Option(help="Folder of data sets.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print every hit as JSON.")] = False,
) -> None:
    """Test questions that stand among the train questions: the same, nearly the same, or similar over a long run.

    Of a first task that has only a test split, that one is searched.
    """
    from workbench.core.overlap import overlaps, repeats
    from workbench.jobs import TaskSource
    from workbench.tasks import has_split, load_questions

    def source(task: str) -> TaskSource:
        return TaskSource(task=task, datasets=str(datasets or home() / "datasets"))

    def texts(task: str, split: str) -> dict[str, str]:
        return {question.question_id: question.text for question in load_questions(source(task), split).questions}

    split = "train" if has_split(source(train), "train") else "test"
    seen, rows, hits = texts(train, split), [], []
    if split == "test":
        err.print(f"{train} has no train split here; its test split is searched")
    for task in tests:
        asked = texts(task, "test")
        found = overlaps(seen, asked)
        hits += [{"task": task} | vars(hit) for hit in found]
        counts = [sum(hit.kind == kind for hit in found) for kind in ("exact", "near", "run")]
        rows.append([task, len(asked), *counts, f"{len(found) / len(asked):.1%}", len(repeats(asked))])
    if as_json:
        typer.echo(json.dumps(hits, indent=2))
        return
    table = Table("test set", "questions", "exact", "near", "similar", "in all", "repeats in itself")
    for row in rows:
        table.add_row(*map(str, row))
    out.print(f"{train}: {len(seen)} {split} questions, {len(repeats(seen))} repeat another one")
    out.print(table)
