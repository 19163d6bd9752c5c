"""The commands `queue ...`: who works, who waits and why; order, hold, pause; alerts."""

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from workbench import alerts, queue_rows, queueing, rundir

app = typer.Typer(no_args_is_help=False, help="What runs where on this machine, what waits, and why.")
out = Console(highlight=False)
Name = Annotated[str, typer.Argument(metavar="NAME", help="As `workbench queue` shows it; for a run, its id.")]


@app.callback(invoke_without_command=True)
def show(context: typer.Context, as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Show the queue."""
    if context.invoked_subcommand:
        return
    root = rundir.home()
    queueing.ensure(root)
    rows = queue_rows.rows(root)
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    settings = queueing.settings_of(root)
    if settings.paused:
        out.print(f"The queue is paused{': ' + settings.why if settings.why else ''}. Go on: workbench queue go")
    if not rows:
        out.print("Nobody works and nobody waits.")
        return
    table = Table("", "name", "priority", "where, or why it waits")
    for number, row in enumerate(rows, 1):
        table.add_row(str(number), row["name"], str(row["priority"]), row["text"])
    out.print(table)


@app.command()
def pause() -> None:
    """Start no more runs; those that work go on."""
    queueing.change_settings(rundir.home(), paused=True)
    out.print("No more runs start. Go on: workbench queue go")


@app.command()
def go() -> None:
    """Let runs start again."""
    queueing.change_settings(rundir.home(), paused=False)


@app.command()
def hold(name: Name) -> None:
    """Let others pass a waiting one, until it is released."""
    queueing.change(rundir.home(), name, held=True)


@app.command()
def release(name: Name) -> None:
    """End holding one back."""
    queueing.change(rundir.home(), name, held=False)


@app.command()
def priority(name: Name, value: Annotated[int, typer.Argument(help="-100 to 100; higher goes first.")]) -> None:
    """Give a waiting one another priority."""
    queueing.change(rundir.home(), name, priority=value)


@app.command()
def move(
    name: Name, places: Annotated[int, typer.Option("--by", help="Places back, or forward where negative.")]
) -> None:
    """Move a waiting one in the queue."""
    queueing.move(rundir.home(), name, places)


@app.command("on-error")
def on_error(what: Annotated[str, typer.Argument(help="continue or pause.")]) -> None:
    """After a run has failed: continue with the next, or pause the queue."""
    if what not in ("continue", "pause"):
        raise ValueError(f"on-error is continue or pause; got {what!r}")
    root = rundir.home()
    queueing.change_settings(root, continue_on_error=what == "continue", paused=queueing.settings_of(root).paused)


@app.command("test-alert")
def test_alert() -> None:
    """Send a test alert to whom alerts.toml names."""
    root = rundir.home()
    config = alerts.read_config(root)
    if not config.webhook and not config.command:
        raise ValueError(f"{root / 'alerts.toml'} names no webhook and no command; nobody would be told")
    if problems := alerts.tell(root, "test", None, "This is a test alert of the workbench."):
        raise ValueError("; ".join(problems))
    out.print("sent")
