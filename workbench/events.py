"""Progress as data: one JSON object a line, appended whole, read up to the last complete line."""

import json
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from workbench.redact import redacted

Span = tuple[float, float]


class Emit(Protocol):
    """What a phase calls to report progress."""

    def __call__(self, name: str, value: float | None = None, step: int = 0, **data: Any) -> None:
        """Report the metric `name`, or one of the named events below with its data.

        progress(step=done, total=..., unit=...)   how far the phase is
        score(value=accuracy, ...)                 one checkpoint's result on one task
        note(text=...), alert(text=...)            a sentence for people; one they should not miss
        started(since=...), ended()                an attempt at the phase, around everything else; it was asked
                                                   for, and its process begun, at `since`
        """


def event_log(path: Path) -> Emit:
    """An `Emit` that appends to `path`."""

    def emit(name: str, value: float | None = None, step: int = 0, **data: Any) -> None:
        words = {key: redacted(part) if isinstance(part, str) else part for key, part in data.items()}
        append_lines(path, [{"ts": time.time(), "name": name, "value": value, "step": step, **words}])

    return emit


def append_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append rows in one write, first closing a line that an earlier kill left torn.

    A torn line is ended, not removed: readers skip it because it does not parse.
    """
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    with path.open("ab+", buffering=0) as file:
        if before := file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                text = "\n" + text
        data = memoryview(text.encode())
        written = 0
        try:
            while written < len(data):
                written += file.write(data[written:])
        except OSError:  # a full disk takes a part: it is taken off again
            if file.seek(0, os.SEEK_END) == before + written:
                file.truncate(before)
            raise


def cut_torn(path: Path) -> None:
    """Take off a last line that a kill or a full disk left torn; for a file that this process alone writes."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        data = file.read()
        if data and not data.endswith(b"\n"):
            file.truncate(data.rfind(b"\n") + 1)


def read_lines(path: Path, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
    """The complete rows from a byte offset on, and the offset to read from next time."""
    if not path.exists():
        return [], offset
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) < offset:
            offset = 0  # another file than the one that was read
        file.seek(offset)
        data = file.read()
    end = data.rfind(b"\n") + 1
    rows = []
    for line in data[:end].splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows, offset + end


def attempts(events: Iterable[Mapping[str, Any]]) -> list[float]:
    """Seconds of each attempt at a phase: from when it was asked for to the last event before the next one.

    Of a killed attempt, what came after its last event is not known and not counted.
    """
    return [end - begin for begin, end in spans(events)]


def spans(events: Iterable[Mapping[str, Any]], before: Iterable[Span] = ()) -> list[Span]:
    """(begin, end) of each attempt, where `before` are the attempts of the events that came before these."""
    found = list(before)
    for event in events:
        if event["name"] == "started":
            found.append((event.get("since", event["ts"]), event["ts"]))  # an early version did not write since
        elif found:
            found[-1] = (found[-1][0], event["ts"])
    return found
