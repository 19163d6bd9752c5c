"""Accuracies, comparisons and solutions out of the store, for pages and notebooks.

Frames hold fractions. A checkpoint is named by its `checkpoint_id`, `<run>/<iteration>/<kind>`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pandas import DataFrame

from workbench import store
from workbench.core.statistics import (
    bootstrap_mean,
    holm,
    paired_difference,
    pass_at_k,
    smallest_detectable_difference,
    wilson_interval,
)

Z = 1.959964
DIVERSITY = ("distinct_solutions", "distinct_2", "answer_entropy", "self_bleu", "solution_tokens")


def accuracy_frame(db: Path, run_ids: Sequence[str]) -> DataFrame:
    """Every greedy accuracy of some runs, and beside it that without the questions seen in training.

    Adds num_seen, clean_accuracy, clean_low, clean_high (Wilson; missing where no question is left), and smallest,
    the least difference that so few questions can show.
    """
    frame = store.query(
        db,
        """
        WITH seen AS (
            SELECT DISTINCT e.run_id, e.checkpoint_id, e.task, c.question_id
            FROM evals e JOIN contamination c ON c.run_id = e.run_id AND c.task = e.task AND c.iteration <= e.iteration
            WHERE c.kind <> 'run'  -- similar is not seen
        ), counts AS (
            SELECT o.run_id, o.checkpoint_id, o.task, count(*) AS num_seen, sum(o.is_correct::INT) AS right_seen
            FROM outcomes o JOIN seen USING (run_id, checkpoint_id, task, question_id)
            WHERE o.sample = 0 GROUP BY ALL
        )
        SELECT e.*, coalesce(num_seen, 0) AS num_seen, coalesce(right_seen, 0) AS right_seen
        FROM evals e LEFT JOIN counts USING (run_id, checkpoint_id, task)
        WHERE list_contains(?, e.run_id) ORDER BY e.run_id, e.iteration, e.kind = 'merged', e.domain, e.task
        """,
        [list(run_ids)],
    )
    clean = [_clean(row) for row in frame.itertuples()]
    return frame.assign(
        smallest=[smallest_detectable_difference(n) for n in frame["num_questions"]],
        **{name: [row[i] for row in clean] for i, name in enumerate(("clean_accuracy", "clean_low", "clean_high"))},
    ).drop(columns="right_seen")


def _clean(row: Any) -> tuple[float, float, float]:
    """Accuracy and interval on the questions that were not seen."""
    n, right = row.num_questions - row.num_seen, row.num_correct - row.right_seen
    return (right / n, *wilson_interval(int(right), int(n))) if n else (np.nan, np.nan, np.nan)


def domain_means(accuracies: DataFrame) -> DataFrame:
    """ID and mean OOD accuracy of each checkpoint that has all its tasks, with intervals and n.

    One task: its Wilson interval. Several: the normal interval of the mean of their accuracies.
    """
    if accuracies.empty:
        return accuracies
    rows, keys = [], ["run_id", "iteration", "kind", "checkpoint_id"]
    tasks = accuracies.groupby("run_id")["task"].nunique()
    for key, mine in accuracies.groupby(keys, sort=False):
        if len(mine) < tasks[key[0]]:
            continue
        for domain, side in mine.groupby("domain", sort=False):
            mean, half = side["accuracy"].mean(), None
            if len(side) > 1:
                variance = (side["accuracy"] * (1 - side["accuracy"]) / side["num_questions"]).sum() / len(side) ** 2
                half = Z * float(np.sqrt(variance))
            low = side["ci_low"].iloc[0] if half is None else max(0.0, mean - half)
            high = side["ci_high"].iloc[0] if half is None else min(1.0, mean + half)
            about = dict(zip(keys, key, strict=True)) | {"domain": domain, "num_tasks": len(side)}
            rows.append(about | {"accuracy": mean, "ci_low": low, "ci_high": high, "n": side["num_questions"].sum()})
    return DataFrame(rows)


def pass_frame(db: Path, run_ids: Sequence[str]) -> DataFrame:
    """pass@k of the checkpoints of some runs."""
    return store.query(
        db,
        "SELECT * FROM pass_at_k WHERE list_contains(?, run_id) ORDER BY run_id, iteration, kind = 'merged', task, k",
        [list(run_ids)],
    )


def compared(db: Path, first: str, second: str) -> DataFrame:
    """The second checkpoint against the first on the same questions, by task and pooled by domain.

    Rows: scope (a task, or "all ID", "all OOD"), measure (accuracy, pass@k), num_questions, first, second,
    difference, ci_low, ci_high, p_value (exact McNemar; accuracies only), p_holm (over the tasks), smallest
    (the least difference that this n could have shown). pass@k: paired bootstrap over questions.
    """
    answers = store.query(
        db,
        """
        SELECT o.task, o.question_id, o.question, o.sample, o.checkpoint_id, o.is_correct, e.domain
        FROM outcomes o JOIN evals e USING (run_id, checkpoint_id, task)
        WHERE o.checkpoint_id = ? OR o.checkpoint_id = ?
        """,
        [first, second],
    )
    if answers.empty or first == second:
        return DataFrame()
    greedy = answers[answers["sample"] == 0].pivot(
        index=["task", "question_id", "question"], columns="checkpoint_id", values="is_correct"
    )
    greedy = greedy.reindex(columns=[first, second]).dropna().astype(bool)
    side = answers.groupby("task")["domain"].agg(lambda found: "ID" if (found == "ID").any() else "OOD")
    tasks = greedy.index.get_level_values("task")
    rows = [_paired(task, greedy[tasks == task], first, second) for task in sorted(set(tasks))]
    for domain in ("ID", "OOD"):
        pooled = [task for task in side.index[side == domain] if task in set(tasks)]
        if len(pooled) > 1:
            rows.append(_paired(f"all {domain}", greedy[tasks.isin(pooled)], first, second))
    table = DataFrame(rows)
    if len(table):
        single = ~table["scope"].str.startswith("all ")
        table.loc[single, "p_holm"] = holm(list(table.loc[single, "p_value"]))
    return pd.concat([table, DataFrame(_passes(answers[answers["sample"] > 0], first, second))], ignore_index=True)


def _paired(scope: str, right: DataFrame, first: str, second: str) -> dict[str, Any]:
    """Accuracy on the same questions."""
    found = paired_difference(right[first], right[second])
    return {
        "scope": scope,
        "measure": "accuracy",
        "num_questions": found.num_questions,
        "first": right[first].mean(),
        "second": right[second].mean(),
        "difference": found.value,
        "ci_low": found.ci_low,
        "ci_high": found.ci_high,
        "p_value": found.p_value,
        "smallest": smallest_detectable_difference(found.num_questions),
    }


def _passes(answers: DataFrame, first: str, second: str) -> list[dict[str, Any]]:
    """pass@k on the same questions, for the largest k and one in between."""
    rows = []
    for task, mine in answers.groupby("task"):
        counts = mine.pivot_table(
            index=["question_id", "question"], columns="checkpoint_id", values="is_correct", aggfunc=["sum", "count"]
        )
        if not {first, second} <= set(mine["checkpoint_id"]):
            continue
        counts = counts.dropna()
        if counts.empty:
            continue
        most = int(counts["count"].min().min())
        for k in sorted({k for k in (2, most) if 1 < k <= most}):
            sides = [
                np.array(
                    [pass_at_k(int(m), int(c), k) for m, c in zip(counts["count", x], counts["sum", x], strict=True)]
                )
                for x in (first, second)
            ]
            value, low, high = bootstrap_mean(sides[1] - sides[0])
            about = {"scope": task, "measure": f"pass@{k}", "num_questions": len(counts)}
            about |= {"first": sides[0].mean(), "second": sides[1].mean()}
            rows.append(about | {"difference": value, "ci_low": low, "ci_high": high})
    return rows


def alerts_frame(db: Path, run_ids: Sequence[str]) -> DataFrame:
    """What the runs noted, alerts first."""
    return store.query(
        db,
        "SELECT * FROM notes WHERE list_contains(?, run_id) ORDER BY kind, run_id, iteration",
        [list(run_ids)],
    )


def diversity_frame(db: Path, run_id: str) -> DataFrame:
    """Diversity of the sampled solutions by iteration: name, value."""
    return store.query(
        db,
        """
        SELECT iteration, name, arg_max(value, step) AS value FROM metrics
        WHERE run_id = ? AND phase = 'sample' AND list_contains(?, name) GROUP BY ALL ORDER BY iteration, name
        """,
        [run_id, list(DIVERSITY)],
    )


def contamination_frame(db: Path, run_ids: Sequence[str]) -> DataFrame:
    """How many test questions were seen in training, by run, task, source and kind."""
    return store.query(
        db,
        """
        SELECT run_id, task, source, kind, count(DISTINCT question_id) AS num_questions FROM contamination
        WHERE list_contains(?, run_id) GROUP BY ALL ORDER BY ALL
        """,
        [list(run_ids)],
    )
