"""The `workbench` command. Exit code 0 only on success, 1 for a run that failed, 2 for bad input."""

import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from workbench import checks, compare_cli, disk, gc_cli, grading_cli, layers_cli, origins, queue_cli, rundir
from workbench import dry_run as planning
from workbench import launch as launching
from workbench.config import task_name
from workbench.settings import build_config, load_settings, merge_config, parse_assignments

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
store_app = typer.Typer(no_args_is_help=True, help="The DuckDB store of runs.")
pocket_app = typer.Typer(no_args_is_help=True, help="The pocket model and tasks.")
app.add_typer(store_app, name="store")
app.add_typer(pocket_app, name="pocket")
app.add_typer(layers_cli.app, name="layers")
app.add_typer(queue_cli.app, name="queue")
for command in (grading_cli.grade, grading_cli.regrade, grading_cli.contamination):
    app.command()(command)
app.command("compare")(compare_cli.run_comparison)
app.command("gc")(gc_cli.gc)
out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

RunId = Annotated[str, typer.Argument(metavar="RUN", help="A run's id; `workbench list` shows them.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def main() -> None:
    """Run the command; a mistake of the caller is one sentence and exit code 2."""
    try:
        app()
    except (ValueError, OSError) as error:
        text = disk.sentence(rundir.home()) if disk.is_full(error) else error
        err.print(f"Error: {text}", style="red", markup=False, soft_wrap=True)
        sys.exit(2)


@app.command()
def run(
    preset: Annotated[str | None, typer.Option(help="A shipped preset; without one the defaults.")] = None,
    config: Annotated[Path | None, typer.Option(help="A TOML or JSON file of settings.")] = None,
    changes: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting.")] = None,
    on: Annotated[str | None, typer.Option(help="machine (this one) or ray (a cluster).")] = None,
    address: Annotated[str | None, typer.Option(help="The Ray cluster's dashboard: http://head:8265.")] = None,
    detach: Annotated[bool, typer.Option(help="Do not follow the run; print its id.")] = False,
    priority: Annotated[int, typer.Option(min=-100, max=100, help="Higher goes first in the queue.")] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Start nothing; check it and print its plan.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --dry-run: print JSON.")] = False,
) -> None:
    """Launch a run and follow it. Ctrl-C ends the following, not the run."""
    if preset and config:
        raise ValueError("give --preset or --config, not both")
    if as_json and not dry_run:
        raise ValueError("--json goes with --dry-run; of a run that was launched: workbench show RUN --json")
    named = {"on": on, "ray.address": address}
    asked = parse_assignments(changes or []) | {name: value for name, value in named.items() if value is not None}
    source = config or preset
    settings = build_config(load_settings(source), asked)
    said = origins.told(settings, source, asked)
    root = rundir.home()
    if dry_run:
        raise typer.Exit(planning.run(settings, said, root, out, as_json=as_json))
    run_id = launching.launch(settings, root, priority=priority)
    for line in origins.lines(said):
        err.print(line, markup=False, soft_wrap=True)
    for remark in said["notes"] + checks.remarks(settings):
        err.print(remark, style="yellow", markup=False)
    out.print(run_id)
    if not detach:
        _follow(root, run_id)


@app.command("list")
def list_runs(as_json: AsJson = False) -> None:
    """Every run of this home, newest first."""
    rows = []
    for found in reversed(rundir.all_runs(rundir.home())):
        written = rundir.read_json(found.config)
        status, _ = launching.observed_status(found)
        config = written["config"]
        rows.append(
            {
                "run_id": found.run_id,
                "status": status,
                "method": config["method"],
                "train_task": task_name(config["train_task"]),
                "iterations": config["iterations"],
            }
        )
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
    elif rows:
        table = Table(*rows[0])
        for row in rows:
            table.add_row(*map(str, row.values()))
        out.print(table)
    else:
        out.print("No runs yet. Start one: workbench run --preset pocket")


@app.command()
def show(run_id: RunId, as_json: AsJson = False) -> None:
    """One run: how it stands, its phases, its ID and OOD accuracies."""
    from workbench import report

    summary = report.summary(rundir.home(), run_id)
    if as_json:
        typer.echo(json.dumps(summary, indent=2))
    else:
        report.print_summary(out, summary)


@app.command()
def stop(run_id: RunId) -> None:
    """End a run; `resume` goes on where it was."""
    launching.stop(rundir.home(), run_id)
    out.print(f"{run_id} stopped; go on with: workbench resume {run_id}")


@app.command()
def resume(run_id: RunId, detach: Annotated[bool, typer.Option(help="Do not follow the run.")] = False) -> None:
    """Go on with a stopped or failed run from its first unfinished phase."""
    root = rundir.home()
    launching.resume(root, run_id)
    if not detach:
        _follow(root, run_id)


@app.command()
def merge(
    base: Annotated[Path, typer.Option(help="The base model's directory.")],
    sft: Annotated[Path, typer.Option(help="The fine-tuned model's directory.")],
    out_dir: Annotated[Path, typer.Option("--out", help="Where the merged model goes.")],
    start: Annotated[Path | None, typer.Option(help="What sft was trained from (default: the base).")] = None,
    alpha: Annotated[float, typer.Option(help="Weight of the base, 0 to 1.")] = 0.5,
    drop_rate: Annotated[float, typer.Option(help="DARE p, 0 up to but not 1.")] = 0.2,
    seed: Annotated[int, typer.Option(help="Fixes which changes are dropped.")] = 0,
    measured: Annotated[
        Path | None, typer.Option("--importance", help="For --set profile=importance: `layers importance --out`.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Another setting of the merge, as in --set rule=ties.")
    ] = None,
) -> None:
    """alpha * base + (1 - alpha) * (start + dare(sft - start)), written as a model directory."""
    from workbench.analysis.index import measured_importance
    from workbench.merging.files import merge_checkpoints
    from workbench.merging.stream import open_models, recipe_for
    from workbench.report import merge_lines

    config = merge_config({"alpha": alpha, "drop_rate": drop_rate} | parse_assignments(settings or []))
    importance = measured_importance(measured) if measured else None
    recipe = recipe_for(open_models(base, start or base, sft), config, seed, importance)
    with Progress(console=err, disable=not err.is_terminal) as progress:
        bar = progress.add_task("merging", total=None)
        report = merge_checkpoints(
            base,
            start or base,
            sft,
            {out_dir: recipe},
            progress=lambda done, total: progress.update(bar, completed=done, total=total),
        )[0]
    for line in merge_lines(report):
        out.print(line)


@app.command()
def remake(directory: Annotated[Path, typer.Argument(help="A merged checkpoint whose weights were deleted.")]) -> None:
    """Make the deleted weights of a merged checkpoint again, identical, from its merge.json."""
    from workbench.merging.files import remake as remake_weights

    report = remake_weights(directory)
    out.print(f"{directory / 'model.safetensors'} is there again, {report['bytes']:,} bytes, sha256 as before")


@store_app.command()
def rebuild() -> None:
    """Make the store anew from the run directories."""
    from workbench import store

    count = store.rebuild(rundir.home())
    out.print(f"{rundir.store_path(rundir.home())} rebuilt from {count} run{'s' * (count != 1)}")


@store_app.command()
def sql(query: Annotated[str, typer.Argument(help="A SELECT.")], as_json: AsJson = False) -> None:
    """Query the store, read-only."""
    from workbench import store

    frame = store.query(rundir.store_path(rundir.home()), query)
    if as_json:
        typer.echo(frame.to_json(orient="records", date_format="iso", indent=2))
    else:
        typer.echo(frame.to_string(index=False))


@pocket_app.command()
def build(
    out_dir: Annotated[Path, typer.Option("--out", help="Where tasks and model go.")] = Path("data/pocket"),
    seed: Annotated[int, typer.Option(help="Another seed gives other questions and another model.")] = 0,
) -> None:
    """Make the pocket tasks and train the pocket model from scratch."""
    from workbench.pocket.build import Recipe
    from workbench.pocket.build import build as make

    with Progress(console=err) as progress:
        bar = progress.add_task("pretraining", total=None)

        def report(step: int, steps: int, loss: float) -> None:
            progress.update(bar, completed=step, total=steps, description=f"pretraining, loss {loss:.3f}")

        out.print(str(make(out_dir, Recipe(seed=seed), report)))


@app.command()
def doctor() -> None:
    """What is installed and usable here, and the cure for what is missing."""
    from workbench.doctor import findings

    found = findings(rundir.home())
    table = Table("", "what", "found", "cure", show_edge=False)
    for finding in found:
        mark = {"ok": "[green]ok[/]", "optional": "[yellow]--[/]", "bad": "[red]bad[/]"}[finding.state]
        table.add_row(mark, *map(escape, (finding.what, finding.found, finding.cure)))
    out.print(table)
    if any(finding.state == "bad" for finding in found):
        raise typer.Exit(1)


@app.command("app")
def open_app(port: Annotated[int, typer.Option(envvar="PORT", help="Port on 127.0.0.1.")] = 8501) -> None:
    """Open the workbench in the browser (streamlit run workbench/app.py)."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise ValueError(f"port {port} is in use; choose another: PORT={port + 1}") from None
    script = Path(__file__).parent / "app.py"
    os.environ["WORKBENCH_HOME"] = str(rundir.home())
    os.chdir(script.parents[1])  # where .streamlit/config.toml is
    arguments = ["-m", "streamlit", "run", str(script), "--server.port", str(port)]
    os.execv(sys.executable, [sys.executable, *arguments])


def _follow(root: Path, run_id: str) -> None:
    """Watch a run to its end and print its table."""
    from workbench import report, terminal

    found = rundir.find_run(root, run_id)
    try:
        terminal.follow(found, out)
    except KeyboardInterrupt:
        out.print(f"\nThe run goes on. Watch: workbench show {run_id}   End it: workbench stop {run_id}")
        raise typer.Exit(0) from None
    time.sleep(0.1)
    report.print_summary(out, report.summary(root, run_id))
    if launching.observed_status(found)[0] != "done":
        raise typer.Exit(1)
