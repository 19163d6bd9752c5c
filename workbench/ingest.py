"""A run's files as rows of the store's tables. Live recording and rebuilding both go through here."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from workbench.config import MergeConfig, task_name
from workbench.core.methods import MADE_BY
from workbench.events import Span, read_lines, spans
from workbench.labdir import LabDir, label
from workbench.rundir import PhaseDir, RunDir, read_json


def _tables() -> dict[str, dict[str, str]]:
    """Table -> column -> type, as schema.sql has them."""
    schema = (Path(__file__).parent / "schema.sql").read_text(encoding="utf-8")
    tables = {}
    for name, body in re.findall(r"CREATE TABLE IF NOT EXISTS (\w+) \((.*?)\n\);", schema, re.DOTALL):
        columns = re.findall(r"^    (\w+) +([A-Z]+(?:\[\])?)", body, re.MULTILINE)
        tables[name] = {column: kind for column, kind in columns if column != "PRIMARY"}
    del tables["about_store"]
    return tables


TABLES = _tables()
Row = dict[str, Any]
RECENT = 5
"""Reports of progress that the rate is taken over."""
Offsets = Mapping[str, Any]
"""How far each file was read, and what has to be known of it to go on from there."""


@dataclass
class Batch:
    """New rows per table, and how far each file was read."""

    rows: dict[str, list[Row]] = field(default_factory=lambda: {name: [] for name in TABLES})
    offsets: dict[str, Any] = field(default_factory=dict)


def read_run(run: RunDir, offsets: Offsets) -> Batch:
    """Everything that is new in a run's directory. What has an offset is read from there on."""
    batch = Batch(offsets=dict(offsets))
    written, status = read_json(run.config), read_json(run.status)
    if written is None or status is None:
        return batch
    if offsets.get("status") != status:
        batch.rows["runs"].append(_run_row(run, written, status))
        batch.offsets["status"] = status
    if "base" in written and not offsets.get("base"):
        batch.rows["checkpoints"].append(_base_row(run, written["base"]))
        batch.offsets["base"] = 1
    for place in run.phases():
        _read_phase(batch, run, place, status)
    if written.get("run_id", run.run_id) != run.run_id:
        _rename(batch, run)
    return batch


def _rename(batch: Batch, run: RunDir) -> None:
    """Have the checkpoints of a run whose directory has another name than when it ran carry the new one."""
    for rows in batch.rows.values():
        for row in rows:
            for name in {"checkpoint_id", "start_id"} & row.keys():
                row[name] = row[name] and f"{run.run_id}/{row[name].split('/', 1)[-1]}"


def read_lab(lab: LabDir, offsets: Offsets) -> Batch:
    """Everything that is new in a lab's directory, read like a run's."""
    batch = Batch(offsets=dict(offsets))
    written = read_json(lab.config)
    if not offsets:
        batch.rows["labs"].append(
            {"lab_id": lab.lab_id, "config": json.dumps(written), "created_at": time_of(written["created_at"])}
            | {key: written[key] for key in ("run_id", "iteration", "base", "start", "sft")}
        )
    outcomes, batch.offsets["outcomes"] = read_lines(lab.outcomes, offsets.get("outcomes", 0))
    batch.rows["merge_outcomes"] += [{"lab_id": lab.lab_id, "finished": None} | row for row in outcomes]
    points, batch.offsets["points"] = read_lines(lab.points, offsets.get("points", 0))
    latest = {}
    for point in points:
        merge = MergeConfig.model_validate(point["merge"])
        row = {
            "lab_id": lab.lab_id,
            "point_id": point["point_id"],
            "alpha": merge.alpha,
            "drop_rate": merge.drop_rate,
            "seed": point["seed"],
            "label": label(merge, point["seed"]),
            "merge": merge.model_dump_json(),
            "split": point["split"],
            "ts": time_of(point["ts"]),
        }
        latest |= {(point["point_id"], point["split"], score["task"]): row | score for score in point["scores"]}
    batch.rows["merge_evals"] += latest.values()
    return batch


def time_of(seconds: float) -> datetime:
    """Unix seconds as a UTC time without zone, which is how the store keeps them."""
    return datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None)


def _run_row(run: RunDir, written: Row, status: Row) -> Row:
    config = written["config"]
    return {
        "run_id": run.run_id,
        **{key: config[key] for key in ("method", "model", "iterations", "seed")},
        "train_task": task_name(config["train_task"]),
        "eval_tasks": [task_name(task) for task in config["eval_tasks"]],
        "alpha": config["merge"]["alpha"] if config["method"] == "imm" else None,
        "drop_rate": config["merge"]["drop_rate"] if config["method"] == "imm" else None,
        "config": json.dumps(config),
        "created_at": time_of(written["created_at"]),
        "status": status["status"],
        "status_since": time_of(status["since"]),
        **{key: status[key] for key in ("iteration", "phase", "error")},
    }


def _base_row(run: RunDir, base: Row) -> Row:
    return {
        "checkpoint_id": run.checkpoint_id(0, "base"),
        "run_id": run.run_id,
        "iteration": 0,
        "kind": "base",
        "start_id": None,
        "details": None,
        **{key: base[key] for key in ("path", "num_parameters", "bytes")},
    }


def _read_phase(batch: Batch, run: RunDir, place: PhaseDir, status: Row) -> None:
    """The new rows of one phase."""
    name = f"{place.iteration}/{place.phase}"
    key = {"run_id": run.run_id, "iteration": place.iteration}
    finished = f"{name}/result"
    if not batch.offsets.get(finished):
        result = read_json(place.result)
        for file, table in ((place.solutions, "solutions"), (place.outcomes, "outcomes")):
            rows, batch.offsets[f"{name}/{table}"] = read_lines(file, batch.offsets.get(f"{name}/{table}", 0))
            batch.rows[table] += [key | {"finished": None} | row for row in rows]
        events, batch.offsets[f"{name}/events"] = read_lines(place.events, batch.offsets.get(f"{name}/events", 0))
        _read_events(batch, key, place, events)
        so_far = batch.offsets.get(f"{name}/so far", {"progress": [], "attempts": []})
        progress = [*so_far["progress"], *(event for event in events if event["name"] == "progress")][-RECENT:]
        tries = spans(events, so_far["attempts"])
        row = _phase_row(key, place, result, progress, tries, status)
        if row != so_far.get("row"):
            batch.rows["phases"].append(row)
        batch.offsets[f"{name}/so far"] = {"progress": progress, "attempts": tries, "row": row}
        if result:
            _read_result(batch, run, place, result)
            batch.offsets[finished] = 1
    regrades, batch.offsets[f"{name}/regrades"] = read_lines(place.regrades, batch.offsets.get(f"{name}/regrades", 0))
    for regrade in regrades:
        _read_regrade(batch, key, place, regrade)


def _read_result(batch: Batch, run: RunDir, place: PhaseDir, result: Row) -> None:
    """What a phase that is done has found."""
    key, summary = {"run_id": run.run_id, "iteration": place.iteration}, result["summary"]
    if place.phase in MADE_BY:
        batch.rows["checkpoints"].append(_checkpoint_row(run, place, result))
    if place.phase == "analyze":
        for table, rows in analysis_rows(summary).items():
            batch.rows[table] += [key | row for row in rows]
    batch.rows["contamination"] += [key | row for row in summary.get("contamination", ())]


def _read_regrade(batch: Batch, key: Row, place: PhaseDir, regrade: Row) -> None:
    """A later grading: what it changed, and the scores after it, which take the place of those before."""
    about = key | {"phase": place.phase, "grader": regrade["grader"], "ts": time_of(regrade["ts"])}
    _replace(
        batch.rows["regrades"],
        [about | row for row in regrade["changes"]],
        ("checkpoint_id", "task", "question_id", "sample"),
    )
    for table, scores in (("evals", regrade["scores"]), ("pass_at_k", regrade["pass_scores"])):
        _replace(batch.rows[table], [key | {"ts": about["ts"]} | row for row in scores], ("checkpoint_id", "task", "k"))


def _replace(rows: list[Row], newer: list[Row], keys: tuple[str, ...]) -> None:
    """Put rows in place of those with the same keys."""
    fresh = {tuple(row.get(name) for name in ("run_id", "iteration", *keys)) for row in newer}
    rows[:] = [row for row in rows if tuple(row.get(name) for name in ("run_id", "iteration", *keys)) not in fresh]
    rows += newer


def analysis_rows(found: Row) -> dict[str, list[Row]]:
    """What phase `analyze` found, as rows of the tables importance, weight_change and superficiality."""
    counts = {about["text_set"]: about["num_examples"] for about in found["sets"]}
    return {
        "importance": [row | {"num_examples": counts[row["text_set"]]} for row in found["importance"]],
        "weight_change": [row | {"layer": -1 if row["layer"] is None else row["layer"]} for row in found["changes"]],
        "superficiality": [row | {"num_examples": counts.get(row["text_set"])} for row in found["indices"]],
    }


def _read_events(batch: Batch, key: Row, place: PhaseDir, events: list[Row]) -> None:
    """Scores, notes and alerts to their tables, what else has a value to metrics; of a repeated one the last counts."""
    found: dict[str, dict[Any, Row]] = {table: {} for table in ("metrics", "evals", "pass_at_k", "notes")}
    for event in events:
        name, row = event["name"], key | {"ts": time_of(event["ts"])}
        if name == "score":
            fields = {column: event.get(column) for column in TABLES["evals"]}
            found["evals"][event["checkpoint_id"], event["task"]] = fields | row | {"accuracy": event["value"]}
        elif name == "pass_at_k":
            fields = {column: event.get(column) for column in TABLES["pass_at_k"]}
            place_of = event["checkpoint_id"], event["task"], event["k"]
            found["pass_at_k"][place_of] = fields | row | {"pass_at_k": event["value"]}
        elif name in ("note", "alert"):
            about = {"phase": place.phase, "kind": name, "text": event["text"]}
            found["notes"][event["text"]] = row | about
        elif event["value"] is not None:
            about = {"phase": place.phase, "name": name, "step": event["step"], "value": event["value"]}
            found["metrics"][name, event["step"]] = row | about
    for table, rows in found.items():
        batch.rows[table] += rows.values()


def _phase_row(
    key: Row, place: PhaseDir, result: Row | None, progress: list[Row], tries: Sequence[Span], status: Row
) -> Row:
    last = progress[-1] if progress else {}
    here = (status["iteration"], status["phase"]) == (place.iteration, place.phase)
    state = "done" if result else status["status"] if here else "stopped"
    started = result["started_at"] if result else place.job.stat().st_mtime
    return key | {
        "phase": place.phase,
        "status": state,
        "started_at": time_of(started),
        "ended_at": time_of(result["ended_at"]) if result else None,
        "done": last.get("step"),
        "total": last.get("total"),
        "unit": last.get("unit"),
        "rate": _rate(progress),
        "summary": json.dumps(result["summary"]) if result else None,
        "cost": json.dumps(_cost(result, tries)),
    }


def _cost(result: Row | None, tries: Sequence[Span]) -> Row:
    """What a phase has cost, as far as is known: of a phase at work, or of an early version, the seconds."""
    if result is None:
        return {"seconds": sum(end - begin for begin, end in tries), "attempts": len(tries)} if tries else {}
    early = {"seconds": result["ended_at"] - result["started_at"], "num_tokens": result["summary"].get("num_tokens")}
    return result.get("cost", early) | {"taken_from": result.get("taken_from")}


def _rate(recent: list[Row]) -> float | None:
    """Units per second over the last reports."""
    if len(recent) < 2 or recent[-1]["ts"] <= recent[0]["ts"] or recent[-1]["step"] <= recent[0]["step"]:
        return None
    return (recent[-1]["step"] - recent[0]["step"]) / (recent[-1]["ts"] - recent[0]["ts"])


def _checkpoint_row(run: RunDir, place: PhaseDir, result: Row) -> Row:
    kind = MADE_BY[place.phase]
    return {
        "checkpoint_id": run.checkpoint_id(place.iteration, kind),
        "run_id": run.run_id,
        "iteration": place.iteration,
        "kind": kind,
        "path": str(place.checkpoint),
        "start_id": read_json(place.job)["start"]["checkpoint_id"],
        "num_parameters": result["summary"]["num_parameters"],
        "bytes": result["summary"]["bytes"],
        "details": json.dumps(result["summary"]),
    }
