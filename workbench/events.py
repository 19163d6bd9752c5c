"""Progress as data: one JSON object a line, appended whole, read up to the last complete line."""

import json
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol


class Emit(Protocol):
    """What a phase calls to report progress."""

    def __call__(self, name: str, value: float | None = None, step: int = 0, **data: Any) -> None:
        """Report the metric `name`, or one of the named events below with its data.

        progress(step=done, total=..., unit=...)   how far the phase is
        score(value=accuracy, ...)                 one checkpoint's result on one task
        note(text=...)                             a sentence for people
        """


def event_log(path: Path) -> Emit:
    """An `Emit` that appends to `path`."""

    def emit(name: str, value: float | None = None, step: int = 0, **data: Any) -> None:
        append_lines(path, [{"ts": time.time(), "name": name, "value": value, "step": step, **data}])

    return emit


def append_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append rows in one write, first closing a line that an earlier kill left torn.

    A torn line is ended, not removed: readers skip it because it does not parse.
    """
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    with path.open("ab+") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                text = "\n" + text
        file.write(text.encode())


def read_lines(path: Path, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
    """The complete rows from a byte offset on, and the offset to read from next time."""
    if not path.exists():
        return [], offset
    with path.open("rb") as file:
        file.seek(offset)
        data = file.read()
    end = data.rfind(b"\n") + 1
    rows = []
    for line in data[:end].splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows, offset + end
