"""Writing the store: a run's new rows as they come, all runs anew, what was missed, what is gone."""

import logging
import secrets
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import duckdb
from pandas import DataFrame

from workbench import stopping
from workbench.ingest import TABLES, Batch, Offsets, read_lab, read_run, time_of
from workbench.labdir import LabDir, all_labs
from workbench.rundir import RunDir, all_runs, read_json, store_path
from workbench.storefile import (
    MEMORY,
    SCHEMA,
    VERSION,
    StoreBusy,
    StoreDamaged,
    StoreHeld,
    alone,
    connect,
    gate,
    is_damage,
    version_of,
)

logger = logging.getLogger(__name__)
Place = RunDir | LabDir
Value = TypeVar("Value")
ENDED = ("done", "failed", "stopped")
LAST_WAIT_S = 60.0
"""How long the last words of a run wait for a store that is held; nobody comes after them."""
REBUILD_WAIT_S = 5.0
"""How long a reader or a runner waits for a store that another process is making anew."""
SETTLED_S = 5.0
"""A status so old has been recorded by its runner, if its runner could."""
HELD_S = 30.0
"""A runner that could not record tries again well before that; if none does, there is none."""
REGRADED = """
    UPDATE solutions AS s SET answer = r.answer, is_correct = r.is_correct FROM regrades r
    WHERE r.phase = 'sample' AND (s.run_id, s.iteration, s.question_id, s.sample)
        = (r.run_id, r.iteration, r.question_id, r.sample) AND list_contains(?, r.run_id);
    UPDATE outcomes AS o SET answer = r.answer, is_correct = r.is_correct FROM regrades r
    WHERE r.phase = 'evaluate' AND (o.run_id, o.checkpoint_id, o.task, o.question_id, o.sample)
        = (r.run_id, r.checkpoint_id, r.task, r.question_id, r.sample) AND list_contains(?, r.run_id);
"""
"""What was graded again has the newer grade."""


def ingest(db: Path, place: Place, offsets: Offsets) -> dict[str, Any]:
    """Bring the store up to date with a run's or lab's files, read from `offsets` on; return the new offsets.

    Raises:
        StoreBusy: the store cannot be had now; the same offsets serve the next time.
    """
    db.parent.mkdir(parents=True, exist_ok=True)
    held, until = _held(db), time.monotonic() + LAST_WAIT_S
    while True:
        try:
            newer = mended(db, lambda: _ingest(db, place, offsets))
            held.unlink(missing_ok=True)
            return newer
        except StoreBusy as busy:
            held.write_text(str(busy), encoding="utf-8")
            if not (isinstance(busy, StoreHeld) and _has_ended(place)) or time.monotonic() > until:
                raise


def _has_ended(place: Place) -> bool:
    """Whether these are the last words of a run."""
    return isinstance(place, RunDir) and (read_json(place.status) or {}).get("status") in ENDED


def held_by(db: Path) -> str | None:
    """Why runs could not record just now, if they could not: who holds the store."""
    held = _held(db)
    try:
        return held.read_text(encoding="utf-8") if time.time() - held.stat().st_mtime < HELD_S else None
    except FileNotFoundError:
        return None


def _held(db: Path) -> Path:
    return db.with_name(f".{db.name}.held")


def _ingest(db: Path, place: Place, offsets: Offsets) -> dict[str, Any]:
    if not db.exists():
        raise StoreDamaged(f"there is no store {db}")
    batch = _read(place, offsets)
    if offsets and not any(batch.rows.values()):
        return batch.offsets
    frames = _frames(batch)
    with connect(db, read_only=False) as connection:
        try:
            store_id = _prepare(connection)
            if offsets and offsets.get("store") != store_id:
                batch = _read(place, {})  # another store than the one that the offsets are about
                frames = _frames(batch)
            _write(connection, frames)
        except (duckdb.IOException, duckdb.OutOfMemoryException) as error:
            if is_damage(error):
                raise
            raise StoreBusy(f"the store cannot be written: {error}") from error
    return batch.offsets | {"store": store_id}


def mended(db: Path, action: Callable[[], Value]) -> Value:
    """The action's value; a store that is damaged is made anew first, unless another process has done so.

    Raises:
        StoreBusy: another process is still at it.
    """
    seen = _inode(db)
    try:
        return action()
    except StoreDamaged as damage:
        with alone(db, REBUILD_WAIT_S):
            if _inode(db) == seen:
                count = _rebuild(db)
                level = logging.WARNING if seen and count else logging.INFO
                logger.log(level, "%s; made anew from %d runs", damage, count)
    return action()


def _inode(db: Path) -> int | None:
    """Which file the store is; another one after a rebuild."""
    return db.stat().st_ino if db.exists() else None


def prepare(db: Path) -> None:
    """Make the tables and columns that are not there: of a new store, or of an older version's."""
    db.parent.mkdir(parents=True, exist_ok=True)
    with connect(db, read_only=False) as connection:
        _prepare(connection)


def _prepare(connection: duckdb.DuckDBPyConnection) -> int:
    """Bring the tables to this version; return the store's id."""
    version, store_id = version_of(connection)
    if version == VERSION:
        return store_id
    store_id = secrets.randbits(62)
    with duckdb.connect() as model:
        model.execute(SCHEMA)
        wanted = _shape(model)
    connection.execute("BEGIN")
    connection.execute(SCHEMA)
    there = {(table, name) for table, name, _ in _shape(connection)}
    for table, name, kind in wanted:
        if name and (table, name) not in there:
            connection.execute(f"ALTER TABLE {table} ADD COLUMN {name} {kind}")
    if not wanted <= _shape(connection):
        raise StoreDamaged("the store is of an early version, whose tables cannot be brought up to this one")
    connection.execute("DELETE FROM about_store")
    connection.execute("INSERT INTO about_store VALUES (?, ?)", [VERSION, store_id])
    connection.execute("COMMIT")
    return store_id


def _shape(connection: duckdb.DuckDBPyConnection) -> set[tuple[str, str, str]]:
    """(table, column, type) of every column, and (table, "", primary key) of every table that has one."""
    columns = connection.execute("SELECT table_name, column_name, data_type FROM duckdb_columns() WHERE NOT internal")
    found = set(columns.fetchall())
    keys = connection.execute(
        "SELECT table_name, '', constraint_column_names::VARCHAR FROM duckdb_constraints()"
        " WHERE constraint_type = 'PRIMARY KEY'"
    )
    return found | set(keys.fetchall())


def _read(place: Place, offsets: Mapping[str, int]) -> Batch:
    return read_lab(place, offsets) if isinstance(place, LabDir) else read_run(place, offsets)


def _frames(batch: Batch) -> dict[str, DataFrame]:
    """The rows of each table that has any."""
    return {table: DataFrame(rows, columns=list(TABLES[table])) for table, rows in batch.rows.items() if rows}


def _write(connection: duckdb.DuckDBPyConnection, frames: Mapping[str, DataFrame]) -> None:
    """Insert or replace new rows in one transaction."""
    connection.execute("BEGIN")
    for table, frame in frames.items():
        columns = TABLES[table]
        cast = ", ".join(f"CAST({name} AS {kind}) AS {name}" for name, kind in columns.items())
        connection.register("batch", frame)
        connection.execute(f"INSERT OR REPLACE INTO {table} ({', '.join(columns)}) SELECT {cast} FROM batch")
        connection.unregister("batch")
    if "regrades" in frames:
        runs = sorted(set(frames["regrades"]["run_id"]))
        for statement in REGRADED.split(";")[:-1]:
            connection.execute(statement, [runs])
    connection.execute("COMMIT")


def rebuild(root: Path) -> int:
    """Make the store anew from the run directories; return the number of runs.

    Raises:
        StoreBusy: another process is doing so.
    """
    db = store_path(root)
    db.parent.mkdir(parents=True, exist_ok=True)
    with alone(db, 0):
        return _rebuild(db)


def _rebuild(db: Path) -> int:
    """Read everything into a file beside the store, then what came meanwhile while runners wait, and swap."""
    root, scratch = db.parent, db.with_suffix(".rebuild")
    for path in (scratch, scratch.with_name(scratch.name + ".wal")):
        path.unlink(missing_ok=True)
    done: dict[Path, Batch] = {}
    with closing(duckdb.connect(scratch, config={"memory_limit": MEMORY})) as connection:
        _prepare(connection)
        _read_all(connection, root, done)
        with gate(db, LAST_WAIT_S):
            _read_all(connection, root, done)
            connection.close()
            db.with_name(db.name + ".wal").unlink(missing_ok=True)
            scratch.replace(db)
    return sum(path.parent.name == "runs" for path in done)


def _read_all(connection: duckdb.DuckDBPyConnection, root: Path, done: dict[Path, Batch]) -> None:
    """Every run and lab from where `done` stands; one that cannot be read is named and left out."""
    for place in [*all_runs(root), *all_labs(root)]:
        stopping.look()
        before = done.get(place.path, Batch())
        try:
            batch = _read(place, before.offsets)
        except (ValueError, KeyError, TypeError) as error:
            if place.path not in done:
                logger.warning("%s is left out of the store: %s: %s", place.path, type(error).__name__, error)
            continue
        news = {table: rows for table, rows in batch.rows.items() if rows and rows != before.rows[table]}
        if news:
            _write(connection, _frames(batch))
            done[place.path] = Batch({**Batch().rows, "runs": batch.rows["runs"]}, batch.offsets)


def catch_up(root: Path) -> list[str]:
    """Record what the store has missed, and take out what is gone; return the ids of these runs.

    A runner that was killed, or that found the store held to the end, has not recorded its last words; a run
    directory may have been copied here or deleted. A store that is held is left as it is: the next time will do.
    """
    db = store_path(root)
    if not db.exists():
        return []
    try:
        with connect(db, read_only=True) as connection:
            if version_of(connection)[0] != VERSION:
                return []
            known = connection.execute("SELECT run_id, status, status_since FROM runs").fetchall()
        late, gone = _missed(root, {run_id: (status, since) for run_id, status, since in known})
        for run in late:
            ingest(db, run, {})
        if gone:
            _forget(db, gone)
    except StoreBusy as busy:
        logger.info("%s; catching up later", busy)
        return []
    return [run.run_id for run in late] + gone


def _missed(root: Path, known: Mapping[str, tuple[str, datetime]]) -> tuple[list[RunDir], list[str]]:
    """(runs that the store does not have as they are, ids of those that are gone)."""
    runs, late = all_runs(root), []
    for run in runs:
        if run.run_id in known and known[run.run_id][0] in ENDED:
            continue
        try:
            status = read_json(run.status)
            waits = status and status["status"] == "queued"  # nobody records those that wait
            is_settled = waits or status and time.time() - run.status.stat().st_mtime > SETTLED_S
            if is_settled and known.get(run.run_id) != (status["status"], time_of(status["since"])):
                read_run(run, {})  # one that cannot be read waits for `rebuild` to say so
                late.append(run)
        except (ValueError, KeyError, TypeError, FileNotFoundError):
            continue
    return late, sorted(known.keys() - {run.run_id for run in runs})


def _forget(db: Path, run_ids: list[str]) -> None:
    """Take runs out of the store."""
    with connect(db, read_only=False) as connection:
        connection.execute("BEGIN")
        for table, columns in TABLES.items():
            if "lab_id" not in columns and "run_id" in columns:
                connection.execute(f"DELETE FROM {table} WHERE list_contains(?, run_id)", [run_ids])
        connection.execute("COMMIT")
