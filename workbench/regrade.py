"""What a run has recorded, graded again by the grader of today: no sampling, and every change is written down.

The recorded rows stay as they were; a line of `regrades.jsonl` beside them says what a later grading
changed, by which grader, and the scores after it. What was kept for fine-tuning stays kept: it was.
"""

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from workbench import store
from workbench.core.scores import pass_scores, score_of
from workbench.events import append_lines, read_lines
from workbench.grading import changes, grader_version
from workbench.jobs import TaskSource
from workbench.launch import ENDED, observed_status
from workbench.rundir import PhaseDir, find_run, read_json, store_path
from workbench.tasks import TASKS, load_questions

Row = dict[str, Any]


def regrade(root: Path, run_id: str) -> dict[str, Any]:
    """Grade every recorded solution and answer of a run again; what came of it.

    Raises:
        ValueError: no such run, or it is still at work.
    """
    run = find_run(root, run_id)
    status, _ = observed_status(run)
    if status not in ENDED:
        raise ValueError(f"{run_id} is {status}; grade it again once it has ended, or stop it first")
    grader, found = grader_version(), {"rows": 0, "changed": 0, "scores": []}
    for place in run.phases():
        if (result := read_json(place.result)) is None or place.phase not in ("sample", "evaluate"):
            continue
        rows = recorded(place)
        changed = changes(rows, formats(place))
        found["rows"] += len(rows)
        found["changed"] += len(changed)
        if changed:
            line = {"ts": time.time(), "grader": grader, "changes": changed} | _rescored(rows, changed, result)
            append_lines(place.regrades, [line])
            found["scores"] += line["scores"]
    store.ingest(store_path(root), run, {})
    return found


def recorded(place: PhaseDir) -> list[Row]:
    """The solutions or answers of a phase as they are graded now, each with its task."""
    if place.phase == "sample":
        rows, _ = read_lines(place.solutions)
        task = next(iter(formats(place)))
        rows = [row | {"task": task, "checkpoint_id": ""} for row in rows]
    else:
        rows, _ = read_lines(place.outcomes)
    regrades, _ = read_lines(place.regrades)
    return _regraded(rows, (change for line in regrades for change in line["changes"]))


def formats(place: PhaseDir) -> dict[str, str]:
    """The answer format of each task of a phase: as recorded, or of a run made before that was, the task's own.

    Raises:
        ValueError: it was not recorded, and the task's files have gone.
    """
    if known := read_json(place.result)["summary"].get("formats"):
        return known
    job, split = read_json(place.job), "train" if place.phase == "sample" else "test"
    asked = [job["train_task"]] if place.phase == "sample" else [job["id_task"], *job["ood_tasks"]]
    sources = [TaskSource.model_validate(source) for source in asked]
    tasks = [TASKS.get(source.task) or load_questions(source, split) for source in sources]
    return {task.name: task.answer_format for task in tasks}


def _key(row: Row) -> tuple:
    return row["checkpoint_id"], row["task"], row["question_id"], row["sample"]


def _regraded(rows: Iterable[Row], changed: Iterable[Row]) -> list[Row]:
    """Rows with the grades that were changed."""
    newer = {_key(change): {"answer": change["answer"], "is_correct": change["is_correct"]} for change in changed}
    return [row | newer.get(_key(row), {}) for row in rows]


def _rescored(rows: list[Row], changed: list[Row], result: Row) -> dict[str, list[Row]]:
    """The scores that the changes touch."""
    touched = {(change["checkpoint_id"], change["task"]) for change in changed}
    rows = _regraded(rows, changed)
    scores, passes = [], []
    for score in result["summary"].get("scores", ()):
        if (score["checkpoint_id"], score["task"]) in touched:
            about = {key: score[key] for key in ("checkpoint_id", "kind")}
            mine = [r for r in rows if (r["checkpoint_id"], r["task"]) == (score["checkpoint_id"], score["task"])]
            greedy = [row for row in mine if row["sample"] == 0]
            scores.append(about | score_of(score["task"], score["domain"], greedy))
            if count := max(row["sample"] for row in mine):
                sampled = [row for row in mine if row["sample"]]
                passes += [about | row for row in pass_scores(score["task"], score["domain"], sampled, count)]
    return {"scores": scores, "pass_scores": passes}
