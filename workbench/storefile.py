"""The store's file: who opens it when, what it says about itself, what to say when it cannot be had.

A DuckDB file has one writing process at a time, and a reader blocks a writer. So every connection lives
for one query or one batch, is tried again for a while when the file is held, and nobody keeps one open.
A gate (a lock file beside the store) is passed by everybody before opening and kept by a writer until it
is done: so a writer waits for the readers that are there, not for those that come after it.
"""

import contextlib
import random
import re
import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb
import psutil
from filelock import FileLock, Timeout

from workbench import stopping
from workbench.redact import redacted

SCHEMA = (Path(__file__).parent / "schema.sql").read_text(encoding="utf-8")
VERSION = 1
"""Of the schema; stores made before there were versions count as 0."""
WAIT_S = 10.0
READ_WAIT_S = 5.0
"""Somebody sits before the screen and should be told who holds the store."""
QUERY_S = 10.0
"""Longest query of a person, after which those of other sessions have their turn."""
GATE_S = 2.0
"""Queries and batches are shorter than that: who keeps others waiting longer is none of ours."""
MEMORY = "1GB"
"""What DuckDB may use in one process."""
DAMAGED = re.compile(
    "not a valid DuckDB|Could not read enough bytes|Corrupt|replaying WAL|checksum|[Ss]erializ|has been invalidated"
)
NEWER_FORMAT = re.compile("version number|newer version of DuckDB", re.IGNORECASE)

_threads: dict[str, threading.Lock] = defaultdict(threading.Lock)
"""Read-only and writing connections to one file do not mix inside a process."""
WAITED: deque[float] = deque(maxlen=100_000)
"""Seconds that each connection of this process had to wait for; `benchmarks/store.py` reports them."""


class StoreBusy(OSError):
    """The store could not be used now; the message says why, or who held it. Nothing is lost: the files are there."""


class StoreHeld(StoreBusy):
    """Another process has the file open."""


class StoreNewer(StoreBusy):
    """A newer workbench made the store."""


class StoreDamaged(StoreBusy):
    """The file is no store any more, or parts of it cannot be read."""


@contextmanager
def connect(db: Path, *, read_only: bool, wait_s: float | None = None) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection for one query or one batch.

    Raises:
        StoreBusy: the file is held by another process; the message says which, where DuckDB knows.
        StoreDamaged: the file is no store.
    """
    wait_s = (READ_WAIT_S if read_only else WAIT_S) if wait_s is None else wait_s
    since = time.monotonic()
    lock = _threads[str(db.absolute())]
    if not lock.acquire(timeout=wait_s + QUERY_S):
        raise StoreHeld(f"the store is held by another query of this process (waited {wait_s + QUERY_S:g} s): {db}")
    try:
        with contextlib.ExitStack() as stack:
            connection = _enter(stack, db, read_only, max(since + wait_s, time.monotonic() + 1.0))
            WAITED.append(time.monotonic() - since)
            try:
                yield connection
            except duckdb.Error as error:
                if is_damage(error) or (not read_only and isinstance(error, duckdb.InternalException)):
                    raise StoreDamaged(f"the store cannot be read: {db}: {error}") from error
                raise
            finally:
                with contextlib.suppress(duckdb.FatalException):  # what is damaged may not even close
                    connection.close()
    finally:
        lock.release()


def _enter(stack: contextlib.ExitStack, db: Path, read_only: bool, deadline: float) -> duckdb.DuckDBPyConnection:
    """Pass the gate and open the file; a writer keeps the gate, on the stack.

    Whoever holds the file for long does not know the gate: then the writer lets it go for a while, since readers
    may be able to read, and readers do without it.
    """
    while True:
        left = deadline - time.monotonic()
        with contextlib.ExitStack() as inside:
            with contextlib.suppress(OSError):  # held for longer, or in a directory that cannot be written
                inside.enter_context(gate(db, min(left, GATE_S) if read_only else left))
            try:
                patience = deadline if read_only else min(deadline, time.monotonic() + GATE_S)
                connection = _open(db, read_only, patience)
            except StoreHeld:
                if time.monotonic() > deadline:
                    raise
            else:
                if not read_only:
                    stack.push(inside.pop_all())
                return connection
        stopping.pause(GATE_S / 4)


@contextmanager
def gate(db: Path, wait_s: float) -> Iterator[None]:
    """The lock that everybody passes before opening a store.

    Raises:
        OSError: not within `wait_s`.
    """
    lock = _acquired(db.with_name(f".{db.name}.gate"), wait_s)
    try:
        yield
    finally:
        lock.release()


def _acquired(path: Path, wait_s: float) -> FileLock:
    """A lock file of the store's, held; who has waited longest asks most often.

    Raises:
        Timeout: not within `wait_s`.
    """
    lock, since = FileLock(path), time.monotonic()
    while True:
        try:
            lock.acquire(timeout=0)
            return lock
        except Timeout:
            waited = time.monotonic() - since
            if waited > wait_s:
                raise
            stopping.pause(0.03 / (1 + 10 * waited))


def _open(db: Path, read_only: bool, deadline: float) -> duckdb.DuckDBPyConnection:
    """Open the file, trying again until the deadline while somebody else has it."""
    while True:
        try:
            return duckdb.connect(db, read_only=read_only, config={"memory_limit": MEMORY})
        except duckdb.Error as error:
            if NEWER_FORMAT.search(str(error)):
                raise StoreNewer(f"{db} needs a newer DuckDB: {error}") from error
            if is_damage(error):
                raise StoreDamaged(f"the store cannot be read: {db}: {error}") from error
            if "lock" not in str(error).lower():
                raise StoreBusy(f"the store {db} cannot be opened: {error}") from error
            if time.monotonic() > deadline:
                raise StoreHeld(_whose(db, error)) from error
        stopping.pause(random.uniform(0.002, 0.02))


def _whose(db: Path, error: duckdb.Error) -> str:
    """Who holds the store, in words."""
    found = re.search(r"\(PID (\d+)\)", str(error))
    if found is None:
        return f"the store is held or cannot be opened: {db}: {error}"
    pid, command = int(found[1]), "a process that has just ended"
    with contextlib.suppress(psutil.Error):
        words = redacted(" ".join(psutil.Process(pid).cmdline()))
        command = words[:120] + "…" * (len(words) > 120)
    return (
        f"The store is held open by process {pid} ({command}). Runs go on and nothing is lost; what is new shows as "
        f"soon as that process closes {db}"
    )


def is_damage(error: Exception) -> bool:
    """Whether an error of DuckDB says that the file is damaged, rather than held, full or asked a wrong question."""
    return isinstance(error, duckdb.FatalException) or bool(DAMAGED.search(str(error)))


def version_of(connection: duckdb.DuckDBPyConnection) -> tuple[int, int]:
    """(version of the schema, what tells this store from one made anew); (0, 0) of one made before versions.

    Raises:
        StoreNewer: the schema is newer than this code.
    """
    try:
        found = connection.execute("SELECT version, store_id FROM about_store").fetchone()
    except duckdb.CatalogException:
        found = None
    version, store_id = found or (0, 0)
    if version > VERSION:
        raise StoreNewer(
            f"the store was made by a newer workbench (schema {version}; this one knows up to {VERSION}): update this "
            "one, or make the store anew from the runs with `workbench store rebuild`"
        )
    return version, store_id


@contextmanager
def alone(db: Path, wait_s: float) -> Iterator[None]:
    """While this process makes the store anew, no other one does.

    Raises:
        StoreBusy: another process is at it; the message says which.
    """
    who = db.with_name(f".{db.name}.rebuild.pid")
    try:
        lock = _acquired(db.with_name(f".{db.name}.rebuild"), wait_s)
    except Timeout as error:
        pid = who.read_text() if who.exists() else "that has just begun"
        raise StoreHeld(f"The store is being made anew from the runs by process {pid}, and shows then: {db}") from error
    try:
        who.write_text(str(psutil.Process().pid))
        yield
    finally:
        who.unlink(missing_ok=True)
        lock.release()
