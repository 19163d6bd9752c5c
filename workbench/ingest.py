"""A run's files as rows of the store's tables. Live recording and rebuilding both go through here."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from workbench.config import MergeConfig
from workbench.core.methods import MADE_BY
from workbench.events import read_lines
from workbench.labdir import LabDir, label
from workbench.rundir import PhaseDir, RunDir, read_json


def _tables() -> dict[str, dict[str, str]]:
    """Table -> column -> type, as schema.sql has them."""
    schema = (Path(__file__).parent / "schema.sql").read_text(encoding="utf-8")
    tables = {}
    for name, body in re.findall(r"CREATE TABLE IF NOT EXISTS (\w+) \((.*?)\n\);", schema, re.DOTALL):
        columns = re.findall(r"^    (\w+) +([A-Z]+(?:\[\])?)", body, re.MULTILINE)
        tables[name] = {column: kind for column, kind in columns if column != "PRIMARY"}
    return tables


TABLES = _tables()
Row = dict[str, Any]


@dataclass
class Batch:
    """New rows per table, and how far each file was read."""

    rows: dict[str, list[Row]] = field(default_factory=lambda: {name: [] for name in TABLES})
    offsets: dict[str, int] = field(default_factory=dict)


def read_run(run: RunDir, offsets: Mapping[str, int]) -> Batch:
    """Everything that is new in a run's directory. What has an offset is read from there on."""
    batch = Batch(offsets=dict(offsets))
    written, status = read_json(run.config), read_json(run.status)
    if written is None or status is None:
        return batch
    batch.rows["runs"].append(_run_row(run, written, status))
    if "base" in written and not offsets.get("base"):
        batch.rows["checkpoints"].append(_base_row(run, written["base"]))
        batch.offsets["base"] = 1
    for place in run.phases():
        _read_phase(batch, run, place, status)
    return batch


def read_lab(lab: LabDir, offsets: Mapping[str, int]) -> Batch:
    """Everything that is new in a lab's directory, read like a run's."""
    batch = Batch(offsets=dict(offsets))
    written = read_json(lab.config)
    if not offsets:
        batch.rows["labs"].append(
            {"lab_id": lab.lab_id, "config": json.dumps(written), "created_at": _time(written["created_at"])}
            | {key: written[key] for key in ("run_id", "iteration", "base", "start", "sft")}
        )
    outcomes, batch.offsets["outcomes"] = read_lines(lab.outcomes, offsets.get("outcomes", 0))
    batch.rows["merge_outcomes"] += [{"lab_id": lab.lab_id} | row for row in outcomes]
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
            "ts": _time(point["ts"]),
        }
        latest |= {(point["point_id"], point["split"], score["task"]): row | score for score in point["scores"]}
    batch.rows["merge_evals"] += latest.values()
    return batch


def _time(seconds: float) -> datetime:
    """Unix seconds as a UTC time without zone, which is how the store keeps them."""
    return datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None)


def _run_row(run: RunDir, written: Row, status: Row) -> Row:
    config = written["config"]
    return {
        "run_id": run.run_id,
        **{key: config[key] for key in ("method", "model", "iterations", "seed")},
        "train_task": Path(config["train_task"]).stem,
        "eval_tasks": [Path(task).stem for task in config["eval_tasks"]],
        "alpha": config["merge"]["alpha"] if config["method"] == "imm" else None,
        "drop_rate": config["merge"]["drop_rate"] if config["method"] == "imm" else None,
        "config": json.dumps(config),
        "created_at": _time(written["created_at"]),
        "status": status["status"],
        "status_since": _time(status["since"]),
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
    finished = f"{name}/result"
    if batch.offsets.get(finished):
        return
    result = read_json(place.result)
    key = {"run_id": run.run_id, "iteration": place.iteration}
    for file, table in ((place.solutions, "solutions"), (place.outcomes, "outcomes")):
        rows, batch.offsets[f"{name}/{table}"] = read_lines(file, batch.offsets.get(f"{name}/{table}", 0))
        batch.rows[table] += [key | row for row in rows]
    # Events are few and the latest progress is needed whole, so a running phase's are read again each time.
    events, _ = read_lines(place.events)
    _read_events(batch, key, place, events)
    batch.rows["phases"].append(_phase_row(key, place, result, events, status))
    if result and place.phase in MADE_BY:
        batch.rows["checkpoints"].append(_checkpoint_row(run, place, result))
    if result and place.phase == "analyze":
        for table, rows in analysis_rows(result["summary"]).items():
            batch.rows[table] += [key | row for row in rows]
    if result:
        batch.offsets[finished] = 1


def analysis_rows(found: Row) -> dict[str, list[Row]]:
    """What phase `analyze` found, as rows of the tables importance, weight_change and superficiality."""
    counts = {about["text_set"]: about["num_examples"] for about in found["sets"]}
    return {
        "importance": [row | {"num_examples": counts[row["text_set"]]} for row in found["importance"]],
        "weight_change": [row | {"layer": -1 if row["layer"] is None else row["layer"]} for row in found["changes"]],
        "superficiality": [row | {"num_examples": counts.get(row["text_set"])} for row in found["indices"]],
    }


def _read_events(batch: Batch, key: Row, place: PhaseDir, events: list[Row]) -> None:
    """Scores to evals, everything else with a value to metrics; of a repeated step the last one counts."""
    metrics, scores = {}, {}
    for event in events:
        if event["name"] == "score":
            fields = {column: event.get(column) for column in TABLES["evals"]}
            scores[event["checkpoint_id"], event["task"]] = (
                fields | key | {"accuracy": event["value"], "ts": _time(event["ts"])}
            )
        elif event["value"] is not None:
            metrics[event["name"], event["step"]] = {
                **key,
                "phase": place.phase,
                "name": event["name"],
                "step": event["step"],
                "value": event["value"],
                "ts": _time(event["ts"]),
            }
    batch.rows["evals"] += scores.values()
    batch.rows["metrics"] += metrics.values()


def _phase_row(key: Row, place: PhaseDir, result: Row | None, events: list[Row], status: Row) -> Row:
    progress = [event for event in events if event["name"] == "progress"]
    last = progress[-1] if progress else {}
    here = (status["iteration"], status["phase"]) == (place.iteration, place.phase)
    state = "done" if result else status["status"] if here else "stopped"
    started = result["started_at"] if result else place.job.stat().st_mtime
    return key | {
        "phase": place.phase,
        "status": state,
        "started_at": _time(started),
        "ended_at": _time(result["ended_at"]) if result else None,
        "done": last.get("step"),
        "total": last.get("total"),
        "unit": last.get("unit"),
        "rate": _rate(progress),
        "summary": json.dumps(result["summary"]) if result else None,
    }


def _rate(progress: list[Row]) -> float | None:
    """Units per second over the last reports."""
    recent = progress[-5:]
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
