"""A process that is asked to stop notes it, and stops where it looks: in its waits, and between two steps of its work.

The signal's handler raises nothing. What it raised would come out of the C code that happens to be at work as another
error (DuckDB: "Query interrupted") or not at all, and would leave half done what is done under a lock.
"""

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import NoReturn, TypeVar

Value = TypeVar("Value")
LOOK_EVERY_S = 0.1


class Stopped(BaseException):
    """Somebody or a verdict asked the run to stop. Not an `Exception`: nothing may swallow it."""


class _Process:
    """How this process stands. No `Event`: its lock may be held by what the handler interrupts."""

    asked = False
    ends = False
    """It says how its work ended, and is not interrupted any more."""
    left = False
    """Something that was done aside goes on in vain."""


def listen() -> None:
    """From here on a SIGTERM asks this process to stop; a second one changes nothing."""
    signal.signal(signal.SIGTERM, lambda number, frame: ask())


def ask() -> None:
    """Note that this process is to stop."""
    _Process.asked = True


def asked() -> bool:
    """Whether this process was asked to stop, be it at the end of its work."""
    return _Process.asked


def look() -> None:
    """Stop here, if that was asked for.

    Raises:
        Stopped: it was; once, so that what is said at the end is not cut short.
    """
    if _Process.asked and not _Process.ends:
        _Process.ends = True
        raise Stopped


def end() -> None:
    """The work is over, however it went: from here on nobody stops."""
    _Process.ends = True


def pause(seconds: float) -> None:
    """Sleep.

    Raises:
        Stopped: as soon as that is asked for.
    """
    until = time.monotonic() + seconds
    while True:
        look()
        left = until - time.monotonic()
        if left <= 0:
            return
        time.sleep(min(left, LOOK_EVERY_S))


def aside(action: Callable[[], Value]) -> Value:
    """The value of something long that cannot look, such as a download.

    Raises:
        Stopped: as soon as that is asked for; the action is left as it is, and ends with the process: see `leave`.
    """
    pool = ThreadPoolExecutor(1)
    made = pool.submit(action)
    pool.shutdown(wait=False)
    try:
        while not wait([made], LOOK_EVERY_S).done:
            look()
    except Stopped:
        _Process.left = True
        raise
    return made.result()


def leave(main: Callable[[], int]) -> NoReturn:
    """End this process after its work, also where something was left that would be waited for."""
    code = 1
    try:
        code = main()
    except Exception:
        traceback.print_exc()
    if _Process.left:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
