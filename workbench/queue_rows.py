"""The queue for people: who works and where, who waits and why."""

from pathlib import Path
from typing import Any

from workbench import queueing
from workbench.rundir import RunDir, last_status


def why_waiting(root: Path) -> dict[str, str]:
    """By name, why each who waits is not working, in a sentence."""
    settings, left, found, first = queueing.settings_of(root), queueing.free(root), {}, True
    for ticket in queueing.tickets(root):
        if ticket.granted:
            continue
        gpus, cores = queueing.wanted(ticket)
        if ticket.held:
            found[ticket.name] = "held back"
        elif settings.paused and ticket.kind == "run":
            found[ticket.name] = f"the queue is paused{': ' + settings.why if settings.why else ''}"
        elif not first and not ticket.elsewhere:
            found[ticket.name] = "after those above it"
        elif gpus > len(left.gpus):
            found[ticket.name] = f"needs {gpus} GPUs; {len(left.gpus)} of {len(queueing.gpu_ids())} are free"
        elif cores > left.cores:
            found[ticket.name] = f"needs {cores} cores; {left.cores} of {queueing.spare_threads()} are free"
        else:
            found[ticket.name] = "starts in a moment"
        first = first and (ticket.held or settings.paused and ticket.kind == "run")
    return found


def rows(root: Path) -> list[dict[str, Any]]:
    """The queue for people: who works and where, then who waits and why."""
    why, found = why_waiting(root), []
    waiting = [ticket for ticket in queueing.tickets(root) if ticket.granted is None]
    for ticket in queueing.tickets(root):
        status = last_status(RunDir(Path(ticket.path)))["status"] if ticket.kind == "run" else None
        if grant := ticket.granted:
            gpus = f"GPU {', '.join(grant.gpus)} and " if grant.gpus else ""
            text = "the Ray cluster" if ticket.elsewhere else f"{gpus}{grant.cores} core{'s' * (grant.cores != 1)}"
            text += " · stopping" * (status == "stopping")
        else:
            text = why.get(ticket.name, "starts in a moment")
        about = {"works": ticket.granted is not None, "status": status, "text": text}
        turn = next((n for n, other in enumerate(waiting, 1) if other.name == ticket.name), None)
        found.append(
            ticket.model_dump(mode="json", include={"name", "kind", "priority", "held"}) | about | {"turn": turn}
        )
    return found
