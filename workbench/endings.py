"""How the processes of a run end: waiting for them, ending them, saying why one failed."""

import signal
import subprocess
import time
from contextlib import suppress

from workbench import disk, stopping
from workbench.rundir import ERROR, PhaseDir

LOG_LINES = 12


def ended_within(process: subprocess.Popen, seconds: float) -> bool:
    """Wait for a child; whether it has ended.

    Raises:
        Stopped: as soon as that is asked for.
    """
    until = time.monotonic() + seconds
    while process.poll() is None:
        stopping.look()
        left = until - time.monotonic()
        if left <= 0:
            return False
        with suppress(subprocess.TimeoutExpired):
            process.wait(min(left, stopping.LOOK_EVERY_S))
    return True


def end(process: subprocess.Popen) -> None:
    """Terminate a child that is still there, insisting after 5 s."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def explain(place: PhaseDir, code: int, run_id: str) -> str:
    """Why a phase failed, in words: exit code or signal, the last log lines, what to do."""
    log = place.log.read_text(errors="replace").splitlines()[-LOG_LINES:]
    if disk.was_full(code, log[-1] if log else "", place.path):
        full = disk.sentence(place.path, f"workbench resume {run_id}")
        return f"Phase {place.phase} of iteration {place.iteration} found no room to write. {full}"
    if code < 0:
        name = signal.Signals(-code).name
        reason = f"was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    else:
        reason = f"ended with exit code {code}" if code else "ended without a result"
    if said := [line for line in log if line.startswith(ERROR)]:
        log = said[-1:]
    return "\n".join(
        [
            f"Phase {place.phase} of iteration {place.iteration} {reason}.",
            *log,
            f"Once the cause is mended: workbench resume {run_id}  (whole log: {place.log})",
        ]
    )
