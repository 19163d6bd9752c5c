"""The DuckDB store: short connections, one transaction a batch, DataFrames out.

A DuckDB file has one writing process at a time, and a reader blocks a writer. So every connection lives
for one query or one batch and is tried again for a while when the file is held; nobody keeps one open.
"""

import random
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
from pandas import DataFrame

from workbench.ingest import TABLES, Batch, read_lab, read_run
from workbench.labdir import LabDir, all_labs
from workbench.rundir import RunDir, all_runs, store_path

SCHEMA = (Path(__file__).parent / "schema.sql").read_text(encoding="utf-8")
WAIT_S = 10.0
_one_at_a_time = threading.Lock()
"""Read-only and writing connections to one file do not mix inside a process."""


class StoreBusy(OSError):
    """Somebody else held the store's file for longer than we waited; the message says who."""


@contextmanager
def connect(db: Path, *, read_only: bool, wait_s: float = WAIT_S) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection for one query or one batch.

    Raises:
        StoreBusy: the file is held by another process; the message says which, where DuckDB knows.
    """
    deadline = time.monotonic() + wait_s
    with _one_at_a_time:
        while True:
            try:
                connection = duckdb.connect(db, read_only=read_only)
                break
            except duckdb.IOException as error:
                if "lock" not in str(error).lower() or time.monotonic() > deadline:
                    raise StoreBusy(f"the store {db} is held: {error}") from error
                time.sleep(random.uniform(0.002, 0.02))
        try:
            yield connection
        finally:
            connection.close()


def ingest(db: Path, place: RunDir | LabDir, offsets: Mapping[str, int]) -> dict[str, int]:
    """Bring the store up to date with a run's or lab's files, read from `offsets` on; return the new offsets."""
    batch = _read(place, offsets)
    db.parent.mkdir(parents=True, exist_ok=True)
    with connect(db, read_only=False) as connection:
        _write(connection, batch)
    return batch.offsets


def _read(place: RunDir | LabDir, offsets: Mapping[str, int]) -> Batch:
    return read_lab(place, offsets) if isinstance(place, LabDir) else read_run(place, offsets)


def rebuild(root: Path) -> int:
    """Make the store anew from the run directories; return the number of runs."""
    db, scratch = store_path(root), store_path(root).with_suffix(".rebuild")
    scratch.unlink(missing_ok=True)
    scratch.parent.mkdir(parents=True, exist_ok=True)
    runs = all_runs(root)
    with connect(scratch, read_only=False) as connection:
        connection.execute(SCHEMA)
        for place in [*runs, *all_labs(root)]:
            _write(connection, _read(place, {}))
    scratch.replace(db)
    db.with_name(db.name + ".wal").unlink(missing_ok=True)
    return len(runs)


def _write(connection: duckdb.DuckDBPyConnection, batch: Batch) -> None:
    """Insert or replace a batch in one transaction."""
    connection.execute("BEGIN")
    connection.execute(SCHEMA)
    for table, columns in TABLES.items():
        if rows := batch.rows[table]:
            frame = DataFrame(rows, columns=list(columns))
            cast = ", ".join(f"CAST({name} AS {kind}) AS {name}" for name, kind in columns.items())
            names = ", ".join(columns)
            connection.register("batch", frame)
            connection.execute(f"INSERT OR REPLACE INTO {table} ({names}) SELECT {cast} FROM batch")
            connection.unregister("batch")
    connection.execute("COMMIT")


def query(db: Path, sql: str, parameters: list[Any] | None = None) -> DataFrame:
    """The rows of one read-only query; it cannot touch other files.

    Raises:
        ValueError: not valid SQL, or it would write.
    """
    if not db.exists():
        _create_tables(db)
    for is_last in (False, True):
        with connect(db, read_only=True) as connection:
            connection.execute("SET enable_external_access = false")
            try:
                return connection.execute(sql, parameters or []).df()
            except duckdb.Error as error:
                if is_last or not isinstance(error, duckdb.CatalogException):
                    raise ValueError(str(error)) from error
        _create_tables(db)  # a store of an older version lacks the newer tables


def _create_tables(db: Path) -> None:
    """Make the tables that are not there."""
    db.parent.mkdir(parents=True, exist_ok=True)
    with connect(db, read_only=False) as connection:
        connection.execute(SCHEMA)


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


def metrics_frame(db: Path, run_id: str, name: str) -> DataFrame:
    """One metric of a run by iteration and step."""
    return query(db, "SELECT * FROM metrics WHERE run_id = ? AND name = ? ORDER BY iteration, step", [run_id, name])


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
            WHERE o.run_id = ?
        )
        SELECT iteration, kind, domain, task, avg(d) AS gain, var_samp(d) AS variance, count(*) AS num_questions
        FROM (
            SELECT a.iteration, a.kind, a.domain, a.task, a.is_correct::INT - b.is_correct::INT AS d
            FROM answers a JOIN answers b USING (task, question_id, sample)
            WHERE b.kind = 'base' AND a.kind <> 'base'
        )
        GROUP BY ALL ORDER BY iteration, kind DESC, domain, task
        """,
        [run_id],
    )
