"""The DuckDB store as the screen and notebooks see it: questions in, frames out. Each question is one short look."""

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import duckdb
from pandas import DataFrame

from workbench.recording import catch_up, held_by, ingest, mended, prepare, rebuild
from workbench.storefile import SCHEMA, VERSION, StoreBusy, StoreDamaged, StoreNewer, connect, is_damage, version_of

__all__ = [
    "SCHEMA",
    "StoreBusy",
    "StoreDamaged",
    "StoreNewer",
    "catch_up",
    "connect",
    "held_by",
    "ingest",
    "query",
    "rebuild",
]
CONFINED = ("enable_external_access = false", "lock_configuration = true")
"""What every question is asked under."""
BUCKETS = 500
"""Of a curve: about as many as a chart has pixels for."""
_open_look: ContextVar[tuple[Path | None, duckdb.DuckDBPyConnection | None]] = ContextVar("look", default=(None, None))


def query(db: Path, sql: str, parameters: list[Any] | None = None) -> DataFrame:
    """The rows of one read-only query; it cannot touch other files.

    Raises:
        ValueError: not valid SQL, or it would write.
        StoreBusy: the store cannot be had now; the message says why.
    """
    return mended(db, lambda: _query(db, sql, parameters or []))


def _query(db: Path, sql: str, parameters: list[Any]) -> DataFrame:
    with contextlib.ExitStack() as stack:
        open_db, connection = _open_look.get()
        if open_db != db:
            connection = stack.enter_context(look(db))
        try:
            return connection.execute(sql, parameters).df()
        except duckdb.Error as error:
            if is_damage(error):
                raise
            raise ValueError(str(error)) from error


@contextmanager
def one_look(db: Path) -> Iterator[None]:
    """Queries in here share one connection: the file is opened once. Read everything, leave, and then draw.

    Raises:
        StoreBusy: the store cannot be had now; the message says why.
    """
    with contextlib.ExitStack() as stack:
        token = _open_look.set((db, mended(db, lambda: stack.enter_context(look(db)))))
        try:
            yield
        finally:
            _open_look.reset(token)


@contextmanager
def look(db: Path, *settings: str) -> Iterator[duckdb.DuckDBPyConnection]:
    """A confined read-only connection to a store of this version: made or brought up to it first, where need be."""
    if not db.exists():
        raise StoreDamaged(f"there is no store {db}")
    with connect(db, read_only=True) as connection:
        if is_current := version_of(connection)[0] == VERSION:
            for setting in (*settings, *CONFINED):
                connection.execute(f"SET {setting}")
            yield connection
    if not is_current:
        prepare(db)
        with look(db, *settings) as connection:
            yield connection


def runs_frame(db: Path) -> DataFrame:
    """One row per run, newest first, with the latest checkpoint's accuracies beside the base's.

    base_id, now_id: ID accuracy; base_ood, now_ood: mean over the OOD tasks; *_curve: by checkpoint. A
    checkpoint counts once all its tasks are evaluated: means over different tasks do not compare.
    """
    return query(
        db,
        """
        WITH scores AS (
            SELECT run_id, iteration, kind,
                   avg(accuracy) FILTER (domain = 'ID') AS id,
                   avg(accuracy) FILTER (domain = 'OOD') AS ood,
                   iteration * 2 + (kind = 'merged')::INT AS place
            FROM evals GROUP BY run_id, iteration, kind
            QUALIFY count(*) = max(count(*)) OVER (PARTITION BY run_id)
        )
        SELECT r.* EXCLUDE (config),
               s.base_id, s.now_id, s.base_ood, s.now_ood, s.id_curve, s.ood_curve, s.now_kind, s.now_iteration
        FROM runs r LEFT JOIN (
            SELECT run_id,
                   any_value(id) FILTER (kind = 'base') AS base_id, arg_max(id, place) AS now_id,
                   any_value(ood) FILTER (kind = 'base') AS base_ood, arg_max(ood, place) AS now_ood,
                   arg_max(kind, place) AS now_kind, max(iteration) AS now_iteration,
                   list(id ORDER BY place) AS id_curve, list(ood ORDER BY place) AS ood_curve
            FROM scores GROUP BY run_id
        ) s USING (run_id)
        ORDER BY r.created_at DESC, r.run_id DESC
        """,
    )


def run_frame(db: Path, run_id: str) -> DataFrame:
    """The row of one run; none where it has not been recorded yet."""
    return query(db, "SELECT * EXCLUDE (config) FROM runs WHERE run_id = ?", [run_id])


def evals_frame(db: Path, run_id: str) -> DataFrame:
    """The accuracies of a run, in the order of its checkpoints, ID first."""
    return query(
        db,
        "SELECT * FROM evals WHERE run_id = ? ORDER BY iteration, kind = 'merged', domain, task",
        [run_id],
    )


def phases_frame(db: Path, run_id: str) -> DataFrame:
    """The phases that a run has started."""
    return query(db, "SELECT * FROM phases WHERE run_id = ? ORDER BY iteration, started_at", [run_id])


def metrics_frame(db: Path, run_id: str, name: str, buckets: int | None = BUCKETS) -> DataFrame:
    """One metric of a run by iteration and step, each iteration's steps in at most `buckets`; None: every step.

    step and value are a bucket's means; low and high its extremes, at low_step and high_step: a peak of one step
    in a hundred thousand is still there. Columns beside: iteration, num_values.
    """
    return query(
        db,
        """
        WITH points AS (
            SELECT iteration, step, value, count(*) OVER (PARTITION BY iteration) AS num_steps,
                   row_number() OVER (PARTITION BY iteration ORDER BY step) - 1 AS place
            FROM metrics WHERE run_id = ? AND name = ? AND value IS NOT NULL
        )
        SELECT iteration, avg(step) AS step, avg(value) AS value, min(value) AS low, arg_min(step, value) AS low_step,
               max(value) AS high, arg_max(step, value) AS high_step, count(*) AS num_values
        FROM points GROUP BY iteration, place * least(coalesce(?, num_steps), num_steps) // num_steps
        ORDER BY iteration, step
        """,
        [run_id, name, buckets],
    )


def solutions_frame(db: Path, run_id: str, limit: int) -> DataFrame:
    """The latest sampled solutions of a run."""
    return query(
        db,
        "SELECT * FROM solutions WHERE run_id = ? ORDER BY iteration DESC, rowid DESC LIMIT ?",
        [run_id, limit],
    )


def outcomes_frame(db: Path, run_id: str, checkpoint_id: str, task: str) -> DataFrame:
    """One checkpoint's answers to one task, by question."""
    return query(
        db,
        "SELECT * FROM outcomes WHERE run_id = ? AND checkpoint_id = ? AND task = ? ORDER BY question_id, sample",
        [run_id, checkpoint_id, task],
    )


def kept_frame(db: Path, run_id: str) -> DataFrame:
    """Per iteration: number of sampled solutions, and the shares that are correct and kept."""
    return query(
        db,
        """
        SELECT iteration, count(*) AS num_solutions, avg(is_correct::INT) AS correct, avg(kept::INT) AS kept
        FROM solutions WHERE run_id = ? GROUP BY iteration ORDER BY iteration
        """,
        [run_id],
    )


def merges_frame(db: Path, lab_id: str) -> DataFrame:
    """Every evaluated merge of a lab by split and task, oldest first."""
    return query(db, "SELECT * FROM merge_evals WHERE lab_id = ? ORDER BY ts, domain, task", [lab_id])


def merge_outcomes_frame(db: Path, lab_id: str, point_ids: Sequence[str], split: str) -> DataFrame:
    """The answers of some merges of a lab, by question."""
    return query(
        db,
        """
        SELECT * FROM merge_outcomes WHERE lab_id = ? AND split = ? AND list_contains(?, point_id)
        ORDER BY task, question_id, point_id
        """,
        [lab_id, split, list(point_ids)],
    )


def importance_frame(db: Path, run_id: str) -> DataFrame:
    """Importance by iteration, text set, layer and module; that of the iteration's start."""
    return query(db, "SELECT * FROM importance WHERE run_id = ? ORDER BY iteration, text_set DESC, layer", [run_id])


def change_frame(db: Path, run_ids: Sequence[str]) -> DataFrame:
    """Weight change of runs' checkpoints by layer and module; layer -1 is what belongs to no layer."""
    return query(
        db,
        "SELECT * FROM weight_change WHERE list_contains(?, run_id) ORDER BY run_id, iteration, kind = 'merged', layer",
        [list(run_ids)],
    )


def superficiality_frame(db: Path, run_id: str) -> DataFrame:
    """The superficiality index of each checkpoint."""
    return query(
        db, "SELECT * FROM superficiality WHERE run_id = ? ORDER BY iteration, kind = 'merged', text_set DESC", [run_id]
    )


def gains_frame(db: Path, run_id: str) -> DataFrame:
    """By checkpoint and task, the gain over the base on the same questions: mean, variance of one, number."""
    return query(
        db,
        """
        WITH answers AS (
            SELECT o.*, e.kind, e.domain FROM outcomes o JOIN evals e USING (run_id, checkpoint_id, task)
            WHERE o.run_id = ? AND o.sample = 0
        )
        SELECT iteration, kind, domain, task, avg(d) AS gain, var_samp(d) AS variance, count(*) AS num_questions
        FROM (
            SELECT a.iteration, a.kind, a.domain, a.task, a.is_correct::INT - b.is_correct::INT AS d
            FROM answers a JOIN answers b USING (task, question_id)
            WHERE b.kind = 'base' AND a.kind <> 'base'
        )
        GROUP BY ALL ORDER BY iteration, kind DESC, domain, task
        """,
        [run_id],
    )
