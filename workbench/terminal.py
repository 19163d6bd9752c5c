"""Follow a run from a terminal: progress bars where there is one, plain lines elsewhere."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from workbench import queueing
from workbench.events import read_lines
from workbench.launch import ENDED, observed_status
from workbench.rundir import PhaseDir, RunDir

POLL_S = 0.5


@dataclass(frozen=True)
class Update:
    """Something new: a phase's progress, a score, or a note."""

    place: PhaseDir
    event: dict


def updates(run: RunDir) -> Iterator[Update | None]:
    """New events of all phases until the run ends; None after each look."""
    offsets: dict[PhaseDir, int] = {}
    ended = False
    while True:
        for place in run.phases():
            events, offsets[place] = read_lines(place.events, offsets.get(place, 0))
            for event in events:
                yield Update(place, event)
        yield None
        if ended:
            return
        queueing.ensure(run.path.parents[1])
        ended = observed_status(run)[0] in ENDED
        time.sleep(0 if ended else POLL_S)


def follow(run: RunDir, console: Console) -> None:
    """Print a run's progress until it ends."""
    columns = (
        TextColumn("{task.description:24}"),
        BarColumn(bar_width=36),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}"),
        TimeRemainingColumn(),
    )
    bars: dict[PhaseDir, TaskID] = {}
    seen: set[PhaseDir] = set()
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        for update in updates(run):
            if update is None:
                continue
            place, event = update.place, update.event
            label = f"iteration {place.iteration}  {place.phase}"
            if event["name"] == "progress":
                if place not in bars:
                    bars[place] = progress.add_task(label, unit=event["unit"])
                progress.update(bars[place], completed=event["step"], total=event["total"])
                if not console.is_terminal and place not in seen:
                    seen.add(place)
                    console.print(f"{label}: {event['total']} {event['unit']}")
            elif event["name"] == "score":
                console.print(score_line(place.iteration, event))
            elif event["name"] in ("note", "alert"):
                console.print(f"  {event['text']}", markup=False)


def score_line(iteration: int, event: dict) -> str:
    """ "Merge 2  pocket_words  OOD  61.2 %  (57 to 65, n = 500)"."""
    from workbench.report import checkpoint_name

    name = checkpoint_name(event["kind"], iteration)
    interval = f"({100 * event['ci_low']:.1f} to {100 * event['ci_high']:.1f}, n = {event['num_questions']})"
    return f"  {name:8} {event['task']:16} {event['domain']:3} {100 * event['value']:5.1f} %  {interval}"
