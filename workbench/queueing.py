"""The queue of a home: who waits for the machine, in which order, and what each was given.

<home>/queue/
  <name>.json        a ticket: a run, a lab or an analysis that waits for a place or has one
  settings.json      whether runs may start, and whether they go on after one has failed
  supervisor.json    the supervisor's process; supervisor.lock is held while it lives; supervisor.log
  alerts.jsonl       what somebody was told, and whether it went out

Tickets are changed under a lock of the home. The supervisor alone gives places, see `workbench.supervisor`.
"""

import os
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout
from pydantic import Field

from workbench.config import Section
from workbench.machine import gpu_ids
from workbench.processes import is_alive_here, start_detached
from workbench.rundir import read_json, write_json

LOCK_S = 20.0
VISIBLE = os.environ.get("CUDA_VISIBLE_DEVICES")
"""As this process was started: a grant narrows it, and a supervisor must see them all."""


class Grant(Section):
    """What a ticket was given."""

    gpus: tuple[str, ...]
    cores: int
    at: float


class Ticket(Section):
    """Somebody who waits for a place on this machine, or has one."""

    name: str
    kind: Literal["run", "lab", "analysis"]
    path: str
    """The directory of the work."""
    order: float
    """Among equal priorities the smaller comes first; at first the time of asking."""
    priority: int = Field(0, ge=-100, le=100)
    held: bool = False
    gpus: int | None = Field(None, ge=1)
    """GPUs wanted; null: all."""
    cores: int | None = Field(None, ge=1)
    """Cores wanted; null: all, or with some of the GPUs the same share of the cores."""
    elsewhere: bool = False
    """It works on a cluster and takes nothing of this machine."""
    granted: Grant | None = None

    @property
    def place(self) -> "WorkDir":
        return WorkDir(Path(self.path))


class QueueSettings(Section):
    """How a home's queue is worked off."""

    paused: bool = False
    why: str | None = None
    """Why it is paused, where nobody asked for it."""
    continue_on_error: bool = True


@dataclass(frozen=True)
class WorkDir:
    """The directory that a ticket's process works in."""

    path: Path

    @property
    def process(self) -> Path:
        return self.path / "process.json"

    @property
    def log(self) -> Path:
        return self.path / "runner.log"


@dataclass(frozen=True)
class QueueDir:
    """A home's directory `queue`; the place its supervisor works in."""

    path: Path

    @classmethod
    def of(cls, root: Path) -> "QueueDir":
        found = cls(root / "queue")
        found.path.mkdir(parents=True, exist_ok=True)
        return found

    @property
    def process(self) -> Path:
        return self.path / "supervisor.json"

    @property
    def log(self) -> Path:
        return self.path / "supervisor.log"

    @property
    def alerts(self) -> Path:
        return self.path / "alerts.jsonl"

    @property
    def settings(self) -> Path:
        return self.path / "settings.json"

    def ticket(self, name: str) -> Path:
        return self.path / f"{name}.ticket.json"


def locked(root: Path) -> FileLock:
    """The lock under which tickets and settings are changed (a context manager)."""
    return FileLock(QueueDir.of(root).path / ".lock", timeout=LOCK_S)


def supervisor_lock(root: Path) -> FileLock:
    """Held by the home's one supervisor as long as it lives."""
    return FileLock(QueueDir.of(root).path / "supervisor.lock")


def tickets(root: Path) -> list[Ticket]:
    """Everybody in the queue: who has a place by its time, then who waits in the order of their turn."""
    found = [_read_ticket(path) for path in (root / "queue").glob("*.ticket.json")]
    return sorted((ticket for ticket in found if ticket), key=_turn)


def _read_ticket(path: Path) -> Ticket | None:
    """A ticket; none where there is none, or none that can be read: see `put_aside_unreadable`."""
    try:
        return Ticket.model_validate(read_json(path))
    except ValueError:
        return None


def put_aside_unreadable(root: Path) -> list[Path]:
    """Rename tickets that cannot be read, cut by a power failure or a slip of the hand: they stop nobody else.

    Whose they were is taken into the queue again. The caller holds the lock.
    """
    found = []
    for path in (root / "queue").glob("*.ticket.json"):
        if _read_ticket(path) is None and path.exists():
            found.append(path.replace(path.with_suffix(".unreadable")))
    return found


def _turn(ticket: Ticket) -> tuple:
    granted = ticket.granted
    return (granted is None, granted.at if granted else 0.0, -ticket.priority, ticket.order, ticket.name)


def write_ticket(root: Path, ticket: Ticket) -> None:
    """Put a ticket into the queue, or change it; the caller holds the lock where it was read before."""
    write_json(QueueDir.of(root).ticket(ticket.name), ticket.model_dump(mode="json"))


def remove_ticket(root: Path, name: str) -> None:
    """Take a ticket out of the queue; one that is not there is no error."""
    QueueDir.of(root).ticket(name).unlink(missing_ok=True)


def ticket_of(root: Path, name: str) -> Ticket | None:
    """The ticket of that name."""
    return _read_ticket(root / "queue" / f"{name}.ticket.json")


def settings_of(root: Path) -> QueueSettings:
    """How the queue is worked off: where its settings cannot be read it is paused, and says so."""
    path = root / "queue" / "settings.json"
    try:
        return QueueSettings.model_validate(read_json(path) or {})
    except ValueError:
        return QueueSettings(paused=True, why=f"{path} cannot be read; letting it go on writes it anew")


def change_settings(root: Path, **changes: object) -> None:
    """Pause the queue or let it go on; whether it goes on after a run has failed."""
    with locked(root):
        changed = settings_of(root).model_copy(update={"why": None} | changes)
        write_json(QueueDir.of(root).settings, changed.model_dump(mode="json"))
    ensure(root)


def change(root: Path, name: str, **changes: object) -> None:
    """Change who waits: `priority`, `held`.

    Raises:
        ValueError: nobody of that name waits, or a value out of its range.
    """
    with locked(root):
        ticket = _waiting(root, name)
        try:
            changed = Ticket.model_validate(ticket.model_dump() | changes)
        except ValueError as error:
            raise ValueError(f"priority is a whole number from -100 to 100; got {changes.get('priority')}") from error
        write_ticket(root, changed)
    ensure(root)


def move(root: Path, name: str, places: int) -> None:
    """Let a waiting one go some places forward (negative) or back; it takes its new neighbour's priority.

    Raises:
        ValueError: nobody of that name waits.
    """
    with locked(root):
        ticket = _waiting(root, name)
        line = [other for other in tickets(root) if other.granted is None]
        at = next(n for n, other in enumerate(line) if other.name == name)
        line.pop(at)
        to = min(max(at + places, 0), len(line))
        if to == at:
            return
        before, after = (line[to - 1] if to else None), (line[to] if to < len(line) else None)
        beside = (after if places < 0 else before) or ticket
        same = [other.order for other in (before, after) if other and other.priority == beside.priority]
        order = sum(same) / 2 if len(same) == 2 else same[0] + (-1 if before is None or beside is after else 1)
        moved = ticket.model_copy(update={"priority": beside.priority, "order": order})
        write_ticket(root, moved)
        line.insert(to, moved)
        _make_room(root, [other for other in line if other.priority == moved.priority])


def _make_room(root: Path, line: list[Ticket]) -> None:
    """Spread the numbers of those of one priority where halving the distance has left none between two."""
    numbers = [ticket.order for ticket in line]
    if all(before < after for before, after in pairwise(numbers)):
        return
    first, step = min(numbers), (max(numbers) - min(numbers)) / (len(line) - 1) or 0.001
    for place, ticket in enumerate(line):
        write_ticket(root, ticket.model_copy(update={"order": first + place * step}))


def _waiting(root: Path, name: str) -> Ticket:
    ticket = ticket_of(root, name)
    if ticket is None or ticket.granted is not None:
        waits = ", ".join(other.name for other in tickets(root) if other.granted is None) or "nobody"
        raise ValueError(f"{name} does not wait in the queue; who waits: {waits}")
    return ticket


def ensure(root: Path) -> None:
    """See that somebody waiting has a supervisor: start one where there is none. Cheap; call it freely."""
    if not any((root / "queue").glob("*.ticket.json")):
        return
    place = QueueDir.of(root)
    try:
        with supervisor_lock(root).acquire(timeout=0):  # one starts it at a time
            if not is_alive_here(place):  # else it is just beginning, and has no lock yet
                start_detached("workbench.supervisor", place, {"CUDA_VISIBLE_DEVICES": VISIBLE})
    except Timeout:
        return


def is_taken(root: Path) -> bool:
    """Whether somebody has a place on this machine."""
    return any(ticket.granted and not ticket.elsewhere for ticket in tickets(root))


@dataclass(frozen=True)
class Free:
    """What of the machine nobody has."""

    gpus: tuple[str, ...]
    cores: int


def free(root: Path) -> Free:
    """GPUs and cores that no ticket holds. With three cores or more, one is the screen's."""
    given = [ticket.granted for ticket in tickets(root) if ticket.granted]
    taken = {gpu for grant in given for gpu in grant.gpus}
    left = tuple(gpu for gpu in gpu_ids() if gpu not in taken)
    return Free(left, max(0, spare_threads() - sum(grant.cores for grant in given)))


def wanted(ticket: Ticket) -> tuple[int, int]:
    """(GPUs, cores) that a ticket asks for, never more than there are."""
    if ticket.elsewhere:
        return 0, 0
    gpus, cores = len(gpu_ids()), spare_threads()
    if gpus and ticket.gpus is not None:
        share = max(1, cores * min(ticket.gpus, gpus) // gpus)
        return min(ticket.gpus, gpus), min(ticket.cores or share, cores)
    return gpus, min(ticket.cores or cores, cores)


def spare_threads() -> int:
    """All cores this process may use; from three on, one is left to the screen."""
    cores = len(os.sched_getaffinity(0))
    return cores if cores <= 2 else cores - 1
