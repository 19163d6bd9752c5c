"""What "open in notebook" writes: for every chart of the screen, how it is read from the store and drawn.

A recipe's body becomes the cells of a notebook (`notebook.of_recipe`), `home` and `db` being given there; so it calls
the package, nothing of this module, and its last line is what it shows. A test goes through the pages and holds each
chart equal to what its recipe draws.
"""

from pathlib import Path
from typing import Any

import pandas as pd
from pandas import DataFrame
from plotly.graph_objects import Figure

from workbench import (
    arms,
    charts,
    comparisons,
    eval_charts,
    evals,
    labdir,
    launch,
    layer_charts,
    merge_charts,
    merges,
    paper,
    queries,
    query_charts,
    rundir,
    store,
)
from workbench import lab as labs


def query(db: Path, sql: str) -> DataFrame:
    """A query of the store"""
    return store.query(db, sql)


def query_chart(db: Path, sql: str, kind: str, x: str, y: str, colour: str | None) -> Figure:
    """A query of the store, drawn"""
    frame, _ = queries.ask(db, sql)
    return query_charts.drawn(frame, kind, x, y, colour)


def timeline(home: Path, db: Path, run_id: str) -> Figure:
    """The phases of a run over time"""
    phases = store.phases_frame(db, run_id)
    status, _ = launch.observed_status(rundir.find_run(home, run_id))
    now = pd.Timestamp.now("UTC").tz_localize(None)
    ended = phases["ended_at"].fillna(now if status == "running" else phases["started_at"])
    return charts.phase_timeline(phases.assign(ended_at=ended))


def accuracy_live(db: Path, run_id: str) -> Figure:
    """The accuracies of a run"""
    accuracies = store.evals_frame(db, run_id)
    run = store.run_frame(db, run_id).iloc[0]
    order = charts.checkpoint_order(run["method"], run["iterations"], "start" in set(accuracies["kind"]))
    return charts.accuracy_by_checkpoint(accuracies, order)


def loss(db: Path, run_id: str) -> Figure:
    """The loss of a run's fine-tuning"""
    metrics = store.metrics_frame(db, run_id, "loss")
    return charts.by_step(metrics, "SFT loss")


def kept(db: Path, run_id: str) -> Figure:
    """How many sampled solutions were correct, and kept"""
    shares = store.kept_frame(db, run_id)
    return charts.kept_share(shares)


def accuracy(db: Path, run_id: str) -> Figure:
    """The accuracies of a run, with the paper's where it has any"""
    accuracies = evals.accuracy_frame(db, [run_id])
    run = store.run_frame(db, run_id).iloc[0]
    order = charts.checkpoint_order(run["method"], run["iterations"], "start" in set(accuracies["kind"]))
    taught = arms.arms_frame(db, [run_id])["taught"].iloc[0]
    theirs = paper.paper_frame(run["model"], run["train_task"], taught=taught)
    return charts.accuracy_by_checkpoint(accuracies, order, theirs)


def runs_compared(db: Path, run_ids: list[str]) -> Figure:
    """Runs side by side"""
    means = evals.domain_means(evals.accuracy_frame(db, run_ids))
    names = charts.run_names(arms.arms_frame(db, run_ids))
    return eval_charts.runs_side_by_side(means, names)


def methods_compared(db: Path, run_ids: list[str]) -> Figure:
    """Methods side by side, the seeds of each together"""
    pooled = arms.seeds_pooled(db, arms.arms_frame(db, run_ids))
    return eval_charts.runs_side_by_side(pooled, {arm: arm for arm in pooled["run_id"].unique()})


def pass_at_k(db: Path, run_ids: list[str], task: str) -> Figure:
    """pass@k of one task"""
    passes = evals.pass_frame(db, run_ids)
    names = charts.run_names(arms.arms_frame(db, run_ids))
    return eval_charts.pass_at_k(passes[passes["task"] == task], names)


def two_checkpoints(db: Path, first: str, second: str) -> Figure:
    """One checkpoint against another, question by question"""
    table = evals.compared(db, first, second)
    return eval_charts.differences(table[table["measure"] == "accuracy"])


def diversity(db: Path, run_id: str) -> Figure:
    """How diverse the sampled solutions are"""
    frame = evals.diversity_frame(db, run_id)
    return eval_charts.diversity(frame)


def layers(db: Path, run_id: str, iteration: int, against: str) -> Figure:
    """Which layers matter, and which moved, in an iteration of a run"""
    importance = store.importance_frame(db, run_id)
    importance = importance[importance["iteration"] == (iteration if against == "start" else 1)]
    change = store.change_frame(db, [run_id])
    change = change[(change["compared_to"] == against) & (change["iteration"] == iteration)]
    return layer_charts.together(importance, change)


def importance_by_module(db: Path, run_id: str, iteration: int, against: str, text_set: str) -> Figure:
    """Which modules matter, in an iteration of a run"""
    importance = store.importance_frame(db, run_id)
    importance = importance[importance["iteration"] == (iteration if against == "start" else 1)]
    return layer_charts.by_module(importance[importance["text_set"] == text_set], "importance", "importance")


def change_by_module(db: Path, run_id: str, iteration: int, against: str, kind: str) -> Figure:
    """Which modules moved, in an iteration of a run"""
    change = store.change_frame(db, [run_id])
    change = change[(change["compared_to"] == against) & (change["iteration"] == iteration)]
    return layer_charts.by_module(change[change["kind"] == kind], "change", "change (Frobenius)")


def superficiality(db: Path, run_id: str, against: str) -> Figure:
    """The superficiality index over the iterations"""
    run = store.run_frame(db, run_id).iloc[0]
    indices = store.superficiality_frame(db, run_id)
    indices = indices[(indices["compared_to"] == against) & (indices["text_set"] == "reasoning")]
    order = charts.checkpoint_order(run["method"], run["iterations"])
    return layer_charts.index_by_checkpoint(indices, store.gains_frame(db, run_id), order)


def change_overlaid(db: Path, run_ids: list[str], against: str, relative: bool) -> Figure:
    """The weight change of runs' checkpoints over the layers"""
    change = store.change_frame(db, run_ids)
    names = charts.run_names(arms.arms_frame(db, run_ids)) if len(run_ids) > 1 else {run_ids[0]: ""}
    return layer_charts.overlaid(change[change["compared_to"] == against], names, relative)


def layers_of_two(home: Path, analysis: str) -> Figure:
    """Which layers of a checkpoint matter, and which moved in another"""
    found = comparisons.frames(comparisons.find(home, analysis))
    change = found["weight_change"]
    return layer_charts.together(found["importance"], change[change["compared_to"] == "base"])


def importance_by_module_of_two(home: Path, analysis: str, text_set: str) -> Figure:
    """Which modules of a checkpoint matter"""
    importance = comparisons.frames(comparisons.find(home, analysis))["importance"]
    return layer_charts.by_module(importance[importance["text_set"] == text_set], "importance", "importance")


def change_by_module_of_two(home: Path, analysis: str, kind: str) -> Figure:
    """Which modules moved between two checkpoints"""
    change = comparisons.frames(comparisons.find(home, analysis))["weight_change"]
    change = change[(change["compared_to"] == "base") & (change["kind"] == kind)]
    return layer_charts.by_module(change, "change", "change (Frobenius)")


def merge_distances(home: Path, lab_id: str, merge: dict[str, Any]) -> Figure:
    """How far a merge lies from the base and from sft, by layer"""
    lab = labdir.find_lab(home, lab_id)
    pair = rundir.read_json(lab.moments)
    return merge_charts.distances(pair | {"importance": labs.layer_importance(lab)}, merge)


def merges_measured(db: Path, lab_id: str) -> Figure:
    """Merges over alpha and p"""
    measured = store.merges_frame(db, lab_id)
    table = merges.points(measured[measured["split"] == "validation"])
    return merge_charts.surface(table)


def merges_traded(db: Path, lab_id: str) -> Figure:
    """Merges, ID against OOD"""
    measured = store.merges_frame(db, lab_id)
    table = merges.points(measured[measured["split"] == "validation"])
    return merge_charts.front(table)


def merges_compared(db: Path, lab_id: str, pinned: list[str]) -> Figure:
    """Merges against base and sft, question by question"""
    measured = store.merges_frame(db, lab_id)
    measured = measured[measured["split"] == "validation"]
    outcomes = store.merge_outcomes_frame(db, lab_id, [merges.BASE_ID, merges.SFT_ID, *pinned], "validation")
    domains = dict(zip(measured["task"], measured["domain"], strict=True))
    labels = dict(zip(measured["point_id"], measured["label"], strict=True))
    return merge_charts.differences(merges.comparison(outcomes, domains, pinned), labels)
