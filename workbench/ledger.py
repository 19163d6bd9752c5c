"""The cost ledger: what each phase and the run have cost, and what a point of accuracy gained has cost.

Frames hold seconds, tokens, GiB, bytes, and gains as fractions. A point is one per cent of the questions.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
from pandas import DataFrame

from workbench import store
from workbench.core.methods import MADE_BY
from workbench.core.statistics import mean_gain

GENERATES = ("sample", "evaluate")
"""Phases whose tokens are generated; those of `sft` are read, epoch by epoch, prompts among them."""
MAKING = ("sample", "sft", "merge")
"""Phases that make checkpoints, in order; the others measure them, which the price of a point leaves out."""
SUMS = ("seconds", "generated_tokens", "trained_tokens", "bytes_written")
PEAKS = ("peak_memory_gib", "peak_gpu_gib")
NAMES = ("iteration", "phase", "state", "checkpoint", "domain")
"""Columns of the tables in words that hold no numbers."""
PER_POINT = {
    "seconds": ("seconds / point", 1),
    "generated_tokens": ("generated / point", 1),
    "trained_tokens": ("trained on / point", 1),
    "bytes_written": ("MB / point", 1e6),
}
"""What is divided by the gain, and how that is called. Memory is not used up, so its peak is not divided."""
PHASES = "SELECT iteration, phase, status, cost FROM phases WHERE run_id = ? ORDER BY iteration, started_at"
COUNTS = """
    WITH answers AS (
        SELECT e.iteration, e.kind, e.domain, o.task, o.question_id, o.is_correct AS is_right
        FROM outcomes o JOIN evals e USING (run_id, checkpoint_id, task) WHERE o.run_id = ? AND o.sample = 0
    )
    SELECT a.iteration, a.kind, a.domain, a.task, count(*) FILTER (a.is_right AND NOT b.is_right) AS gained,
           count(*) FILTER (b.is_right AND NOT a.is_right) AS lost, count(*) AS num_questions,
           (SELECT count(*) FROM evals e WHERE e.run_id = ? AND e.kind = 'base' AND e.domain = a.domain) AS num_tasks
    FROM answers a JOIN answers b USING (task, question_id)
    WHERE b.kind = 'base' AND a.kind IN ('sft', 'merged')
    GROUP BY ALL ORDER BY a.iteration, a.kind DESC, a.domain, a.task
"""


def of_store(db: Path, run_id: str) -> tuple[DataFrame, DataFrame]:
    """(costs, prices) of a run, see `costs_of` and `prices_of`."""
    costs = costs_of(store.query(db, PHASES, [run_id]))
    return costs, prices_of(costs, store.query(db, COUNTS, [run_id, run_id]))


def of_rows(rows: Mapping[str, list[dict[str, Any]]], run_id: str) -> tuple[DataFrame, DataFrame]:
    """The same from a run's own files, as `ingest.read_run` has them."""
    costs = costs_of(DataFrame(rows["phases"]))
    if not rows["evals"]:
        return costs, prices_of(costs, DataFrame())
    keys = ("checkpoint_id", "task", "question_id", "sample")
    newer = {tuple(row[k] for k in keys): row["is_correct"] for row in rows["regrades"] if row["phase"] == "evaluate"}
    outcomes = DataFrame(rows["outcomes"])[["run_id", *keys, "is_correct"]]
    outcomes["is_correct"] = [newer.get(row[1:5], row[5]) for row in outcomes.itertuples(index=False, name=None)]
    with duckdb.connect() as connection:
        connection.register("outcomes", outcomes)
        connection.register("evals", DataFrame(rows["evals"]))
        return costs, prices_of(costs, connection.execute(COUNTS, [run_id, run_id]).df())


def costs_of(phases: DataFrame) -> DataFrame:
    """A row per phase: SUMS, PEAKS, attempts, and the run that it was taken from; what is not known is missing."""
    rows = []
    for phase in phases.itertuples():
        cost = json.loads(phase.cost) if isinstance(phase.cost, str) else {}
        tokens = cost.get("num_tokens")
        about = {"iteration": phase.iteration, "phase": phase.phase, "status": phase.status}
        about |= {name: cost.get(name) for name in ("attempts", "seconds", "bytes_written", *PEAKS, "taken_from")}
        about["generated_tokens"] = tokens if phase.phase in GENERATES else None
        about["trained_tokens"] = tokens if phase.phase == "sft" else None
        rows.append(about)
    columns = ("iteration", "phase", "status", "attempts", *SUMS, *PEAKS, "taken_from")
    return typed(DataFrame(rows, columns=list(columns)))


def typed(costs: DataFrame) -> DataFrame:
    """Counts as integers, of which some may be missing."""
    counts = dict.fromkeys(("attempts", "generated_tokens", "trained_tokens", "bytes_written"), "Int64")
    return costs.astype(counts | dict.fromkeys(("seconds", *PEAKS), "float64"))


def total_of(costs: DataFrame) -> dict[str, int | float | None]:
    """What the run itself has spent: sums, of memory the largest; phases taken from another run are not in it."""
    own = costs[costs["taken_from"].isna()]
    found = {name: own[name].sum(min_count=1) for name in SUMS} | {name: own[name].max() for name in PEAKS}
    return {name: None if pd.isna(value) else value.item() for name, value in found.items()}


def prices_of(costs: DataFrame, counts: DataFrame) -> DataFrame:
    """By checkpoint and domain: the gain over the base with its interval, what making the checkpoint has cost, and
    where the interval lies above zero what a point of it cost: `<sum>_per_point`, `..._low`, `..._high`.

    OOD is the mean over the tasks, once all are evaluated. Phases taken from another run count: it is the price of
    the checkpoint, not of this run.
    """
    rows = []
    if counts.empty:
        return DataFrame(rows)
    for (iteration, kind, domain), mine in counts.groupby(["iteration", "kind", "domain"], sort=False):
        if len(mine) < mine["num_tasks"].iloc[0]:
            continue
        gain, low, high = mean_gain(list(mine[["gained", "lost", "num_questions"]].itertuples(index=False, name=None)))
        row = {"iteration": iteration, "kind": kind, "domain": domain, "gain": gain, "ci_low": low, "ci_high": high}
        row |= {"num_tasks": len(mine), "num_questions": int(mine["num_questions"].sum())}
        row["verdict"] = "gain" if low > 0 else "sure loss" if high < 0 else "no sure gain"
        made = making(costs, iteration, kind)
        for name in SUMS:
            row[name] = made[name].sum(min_count=1)
            for ending, value in (("", gain), ("_low", high), ("_high", low)):
                row[f"{name}_per_point{ending}"] = row[name] / (100 * value) if low > 0 else None
        rows.append(row)
    return DataFrame(rows)


def making(costs: DataFrame, iteration: int, kind: str) -> DataFrame:
    """The phases that a checkpoint came out of, from the first sampling on."""
    maker = next(phase for phase, made in MADE_BY.items() if made == kind)
    this = costs["phase"].isin(MAKING[: MAKING.index(maker) + 1]) & (costs["iteration"] == iteration)
    return costs[this | (costs["phase"].isin(MAKING) & (costs["iteration"] < iteration))]


def phase_table(costs: DataFrame) -> DataFrame:
    """The costs in words, the run's own total above; a GPU's memory where there is one."""
    total = {"iteration": "", "phase": "whole run", "status": ""} | total_of(costs)
    rows = [total, *costs.to_dict("records")]
    table = DataFrame(
        {
            "iteration": [str(row["iteration"]) for row in rows],
            "phase": [row["phase"] for row in rows],
            "state": [_state(row) for row in rows],
            "seconds": [_said(row["seconds"], "{:,.1f}".format) for row in rows],
            "tokens generated": [_said(row["generated_tokens"], "{:,.0f}".format) for row in rows],
            "tokens trained on": [_said(row["trained_tokens"], "{:,.0f}".format) for row in rows],
            "peak memory, GiB": [_said(row["peak_memory_gib"], "{:.2f}".format) for row in rows],
            "peak GPU, GiB": [_said(row["peak_gpu_gib"], "{:.2f}".format) for row in rows],
            "written, MB": [_said(row["bytes_written"], lambda value: f"{value / 1e6:,.1f}") for row in rows],
        }
    )
    return table.drop(columns=[] if table["peak GPU, GiB"].any() else ["peak GPU, GiB"])


def _state(row: Mapping[str, Any]) -> str:
    """done, running, ...; how often it was begun, and whose work it is."""
    if isinstance(row.get("taken_from"), str):
        return f"from {row['taken_from']}"
    again = row.get("attempts")
    return f"{row['status']}, {again} attempts" if pd.notna(again) and again > 1 else row["status"]


def price_table(prices: DataFrame, labels: Sequence[str]) -> DataFrame:
    """What a point has cost, in words; labels: what each row's checkpoint is called."""
    rows = []
    for label, row in zip(labels, prices.to_dict("records"), strict=True):
        gain, low, high = (100 * row[key] for key in ("gain", "ci_low", "ci_high"))
        words = {"checkpoint": label, "domain": row["domain"]}
        words["points gained"] = f"{gain:+.1f} ({low:+.1f} to {high:+.1f})"
        words["n"] = f"{row['num_questions']:,}"
        for column, (title, unit) in PER_POINT.items():
            ends = [row[f"{column}_per_point{ending}"] for ending in ("", "_low", "_high")]
            price = "{} ({} to {})".format(*(short(end / unit) for end in ends)) if pd.notna(ends[0]) else ""
            words[title] = price if row["verdict"] == "gain" else row["verdict"]
        rows.append(words)
    return DataFrame(rows)


def short(value: float) -> str:
    """Three digits that count: 0.123, 12.3, 123,000."""
    return f"{value:,.3g}" if abs(value) < 1000 else f"{round(value, 3 - len(str(int(abs(value))))):,.0f}"


def _said(value: float | None, words: Callable[[float], str]) -> str:
    return "" if pd.isna(value) else words(value)
