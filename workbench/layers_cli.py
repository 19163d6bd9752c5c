"""`workbench layers`: importance of a model's layers, and how far another model's layers lie from them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from workbench.core.layers import WHOLE, in_order
from workbench.settings import analyze_config, parse_assignments

app = typer.Typer(no_args_is_help=True, help="Which layers matter, and which moved.")
out, err = Console(highlight=False), Console(stderr=True, highlight=False)
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def importance(
    model: Annotated[Path, typer.Argument(help="A model directory.")],
    task: Annotated[str | None, typer.Option(help="Task whose worked solutions are the reasoning set.")] = None,
    datasets: Annotated[Path | None, typer.Option(help="Folder of data sets.")] = None,
    text: Annotated[str | None, typer.Option(help="Plain text: a file, or a hub text set (default: shipped).")] = None,
    keep: Annotated[Path | None, typer.Option("--out", help="Directory to keep it in, for `layers change`.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="As in --set num_examples=64 or --set order=second.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Fixes which examples are drawn.")] = 0,
    trust: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run Python code that the model brings along; read it first.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Sum of |gradient x weight| over each layer's linear weights, for a task's solutions and for plain text."""
    import tempfile

    from workbench.comparisons import analysis_job, claim
    from workbench.jobs import TaskSource
    from workbench.merging.files import restore
    from workbench.rundir import PhaseDir, home

    source = TaskSource(task=task, datasets=str(datasets or home() / "datasets")) if task else None
    job = analysis_job(str(model), None, source, text, analyze_config(parse_assignments(settings or [])), seed, trust)
    if keep:
        keep.mkdir(parents=True, exist_ok=True)
        claim(PhaseDir(keep, 0, "analyze"), job)
    restore(model)
    with tempfile.TemporaryDirectory(dir=keep) as scratch, Progress(console=err) as progress:
        found = _measure(job, keep or Path(scratch), progress)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    for about in found["sets"]:
        rows = [row for row in found["importance"] if row["text_set"] == about["text_set"]]
        title = f"{about['text_set']}: {about['origin']}, n = {about['num_examples']} examples"
        out.print(_table(title, rows, "importance", "95 %", lambda r: f"{r['ci_low']:.3g} to {r['ci_high']:.3g}"))


@app.command()
def change(
    first: Annotated[Path, typer.Argument(help="The model that others are compared to.")],
    second: Annotated[Path, typer.Argument(help="A model of the same shape, or a LoRA adapter trained on the first.")],
    measured: Annotated[
        Path | None, typer.Option("--importance", help="What `layers importance --out` kept of the first.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Frobenius norm of the change, summed over each layer's linear weights (paper, Eq. 4)."""
    from workbench.analysis.change import open_pair, weight_change
    from workbench.analysis.index import indices
    from workbench.merging.files import restore

    restore(first, second)
    rows = weight_change(*open_pair(first, second))
    found = indices(measured, rows, seed=0) if measured else []
    if measured and not found:
        raise ValueError(f"{measured} holds no importance; make it with: workbench layers importance MODEL --out DIR")
    if as_json:
        typer.echo(json.dumps({"changes": rows, "indices": found}, indent=2))
        return
    title = f"|{second.name} - {first.name}|, Frobenius"
    out.print(_table(title, [row for row in rows if row["layer"] is not None], "change", "of the norm", _share))
    for row in rows:
        if row["layer"] is None:
            out.print(f"{row['module']}: {row['change']:.4g}, {_share(row)} of the norm")
    for index in found:
        out.print(f"\n{index['text_set']}: {index['verdict']}", markup=False)


def _share(row: dict) -> str:
    return f"{100 * row['change'] / row['norm']:.2g} %" if row["norm"] else ""


def _measure(job, place: Path, progress: Progress) -> dict:
    """Phase analyze in this process, in any directory."""
    from workbench.phases.analyze import run
    from workbench.rundir import PhaseDir

    bar = progress.add_task("layers", total=None)

    def emit(name: str, value: float | None = None, **fields) -> None:
        progress.update(bar, completed=fields["step"], total=fields["total"])

    return run(job, PhaseDir(place, 0, "analyze"), emit)


def _table(title: str, rows: list[dict], value: str, column: str, beside: Callable[[dict], str]) -> Table:
    """One row per layer; its number, with `beside` in a column of its own, then one column per module."""
    modules = in_order(list(dict.fromkeys(row["module"] for row in rows)))[1:]
    table = Table("layer", "all", column, *modules, title=title)
    for layer in sorted({row["layer"] for row in rows}):
        mine = {row["module"]: row for row in rows if row["layer"] == layer}
        whole = mine[WHOLE]
        cells = [f"{mine[module][value]:.3g}" if module in mine else "" for module in modules]
        table.add_row(str(layer), f"{whole[value]:.3g}", beside(whole), *cells)
    return table
