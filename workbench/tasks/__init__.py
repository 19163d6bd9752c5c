"""Tasks: data sets of questions, by name, from a folder, or from the Hugging Face hub."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from workbench.jobs import TaskSource
from workbench.rundir import home
from workbench.settings import NotHere, facts
from workbench.tasks import asdiv, generic, gsm8k, math, mathqa, mawps, mmlu_stem, pocket, sat_math, svamp
from workbench.tasks.base import LoadedTask, Question, Task
from workbench.tasks.drawing import draw_questions
from workbench.tasks.toml_task import read_task

__all__ = [
    "TASKS",
    "LoadedTask",
    "Question",
    "Task",
    "check_source",
    "check_worked",
    "draw_questions",
    "has_split",
    "load_questions",
    "recorded_rows",
    "tuning_split",
]

EDITIONS = "https://github.com/ZubinGou/math-evaluation-harness/tree/main/data"
POCKET = Path(__file__).parents[2] / "data" / "pocket" / "tasks"
TASKS: dict[str, Task] = {
    task.name: task
    for task in [
        gsm8k.TASK,
        math.TASK,
        math.MATH500,
        mawps.TASK,
        svamp.TASK,
        asdiv.TASK,
        sat_math.TASK,
        mathqa.TASK,
        mmlu_stem.TASK,
        *pocket.TASKS,
    ]
}


def load_questions(source: TaskSource, split: str) -> LoadedTask:
    """The questions of a split. A row that cannot be used is left out and named in `problems`.

    Raises:
        ValueError: no such task, file or split; the hub cannot be reached; no usable row.
    """
    task, file = _locate(source, split)
    rows = _hub_rows(task, split) if file is None else _file_rows(file)
    return _read(task, split, rows, str(file or task.hub))


def recorded_rows(name: str, split: str) -> int | None:
    """How many rows a split of a named task has where it comes from; None where that was not recorded."""
    return facts("tasks").get(name, {}).get(split)


def check_source(source: TaskSource, split: str) -> LoadedTask | None:
    """Like `load_questions`, but a task that would come from the hub is not fetched and gives None."""
    task, file = _locate(source, split)
    return None if file is None else _read(task, split, _file_rows(file), str(file))


def check_worked(source: TaskSource) -> str:
    """The split of a task whose questions come with worked solutions: train, else test.

    Raises:
        ValueError: neither does, or no such task.
    """
    for split in [split for split in ("train", "test") if has_split(source, split)] or ["test"]:
        task = check_source(source, split)
        if task is None or any(question.solution for question in task.questions):
            return split
    raise ValueError(f"task {task.name} has no worked solutions; gsm8k, math and mathqa have them")


def has_split(source: TaskSource, split: str) -> bool:
    """Whether a task has a split with usable rows; one that would come from the hub is taken at its word."""
    try:
        check_source(source, split)
    except ValueError:
        return False
    return True


def tuning_split(source: TaskSource) -> str:
    """The split to choose settings on: validation, else train; never test.

    Raises:
        ValueError: the task has neither here.
    """
    for split in ("validation", "train"):
        if has_split(source, split):
            return split
    task = TASKS.get(source.task)
    folder = Path(source.task) if task is None else Path(source.datasets or home() / "datasets") / task.name
    raise ValueError(
        f"task {Path(source.task).stem} has only a test split, and settings are not chosen on that; to tune on it "
        f"too, put other questions at {folder / 'validation.jsonl'}"
    )


def _locate(source: TaskSource, split: str) -> tuple[Task, Path | None]:
    """The task, and its local file; None where it is to come from the hub."""
    path = Path(source.task).expanduser()
    if path.suffix == ".toml":
        return _described(path, split)
    if path.is_file():
        if split != "test":
            raise ValueError(
                f"{path} is one file, the test split; a {split} task is a directory with {split}.jsonl and test.jsonl, "
                "or a task's name"
            )
        return _task_called(path.stem), path
    if path.is_dir():
        file = path / f"{split}.jsonl"
        if not file.is_file():
            raise ValueError(f"{path} has no {split}.jsonl")
        return _task_called(path.name), file
    task = TASKS.get(source.task)
    if task is None:
        raise ValueError(f"no task {source.task!r}, and no such file; known are: {', '.join(TASKS)}")
    folder = Path(source.datasets) if source.datasets else home() / "datasets"
    shipped = POCKET / f"{task.name}.{split}.jsonl"
    for file in (shipped, folder / task.name / f"{split}.jsonl", *_aliases(folder, task, split)):
        if file.is_file():
            return task, file
    if split not in task.splits:
        raise ValueError(f"task {task.name} has no {split} split, only {', '.join(task.splits)}")
    if task.hub is None:
        raise NotHere(
            f"the rows of {task.name} are not on the hub in the form read here; put them at "
            f"{folder / task.name / split}.jsonl (from {EDITIONS}/{task.name}) or set datasets to their folder"
        )
    return task, None


def _described(path: Path, split: str) -> tuple[Task, Path]:
    """A task described in a TOML file."""
    if not path.is_file():
        raise ValueError(f"no task file {path}")
    task, files = read_task(path)
    if split not in files or not files[split].is_file():
        there = ", ".join(name for name, file in files.items() if file.is_file())
        raise ValueError(f"task {task.name} ({path}) has no {split} split, only {there}")
    return task, files[split]


def _aliases(folder: Path, task: Task, split: str) -> list[Path]:
    """math500 may lie beside the rest of MATH."""
    return [folder / "math" / "test500.jsonl"] if task.name == "math500" and split == "test" else []


def _task_called(name: str) -> Task:
    """The known task of that name, or one with generic rows whose answer format is still to be guessed."""
    return TASKS.get(name) or Task(name, "text", generic.read_row)


def _file_rows(file: Path) -> Iterator[Mapping[str, Any] | str]:
    """The rows of a JSON Lines file; a text instead of a row says what is wrong with it."""
    with file.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if line.strip():
                try:
                    row = json.loads(line)
                except ValueError:
                    row = None
                yield row if isinstance(row, dict) else "not a JSON object"


def _hub_rows(task: Task, split: str) -> Iterable[Mapping[str, Any]]:
    """The rows of a hub data set, from its local cache where that has them.

    Raises:
        ValueError: it cannot be fetched, or has not the rows that were recorded: what it is called is no proof.
    """
    from datasets import load_dataset

    name, _, config = task.hub.partition(":")
    try:
        rows = load_dataset(name, config or None, split=task.splits[split])
    except (OSError, ValueError) as error:
        raise ValueError(
            f"task {task.name} could not be fetched from the hub ({task.hub}: {type(error).__name__}); check the "
            f"network, or put its rows at <datasets>/{task.name}/{split}.jsonl and set datasets to that folder"
        ) from error
    recorded = recorded_rows(task.name, split)
    if recorded and len(rows) != recorded:
        raise ValueError(
            f"task {task.name}, {split}: {task.hub} on the hub has {len(rows):,} rows, and {recorded:,} are recorded: "
            f"another edition; put the rows that you mean at <datasets>/{task.name}/{split}.jsonl and set datasets to "
            "that folder"
        )
    return rows


def _read(task: Task, split: str, rows: Iterable[Mapping[str, Any] | str], origin: str) -> LoadedTask:
    """Rows to questions."""
    questions, problems, num_rows = [], [], 0
    for number, row in enumerate(rows, start=1):
        num_rows = number
        try:
            if isinstance(row, str):
                raise ValueError(row)
            found = task.read_row(row)
            if not found.text.strip():
                raise ValueError("no question")
            questions.append(Question(f"{split}-{number - 1}", found.text, found.reference, found.solution))
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            reason = f"no field {error}" if isinstance(error, KeyError) else str(error)
            problems.append(f"{origin}: row {number} left out: {reason}")
    if not questions:
        raise ValueError(f"{origin} has no usable row ({num_rows} rows){'; ' + problems[0] if problems else ''}")
    answer_format = task.answer_format
    if task.name not in TASKS and task.read_row is generic.read_row:
        answer_format = generic.guess_format(question.reference for question in questions)
    return LoadedTask(task.name, answer_format, tuple(questions), num_rows, tuple(problems))
