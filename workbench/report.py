"""A run in words and tables, for the terminal and for `show --json`. Read from the run's own files."""

from pathlib import Path
from typing import Any

from pandas import DataFrame
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from workbench import ledger
from workbench.ingest import read_run
from workbench.launch import observed_status
from workbench.rundir import find_run, read_json


def checkpoint_name(kind: str, iteration: int) -> str:
    """Base, SFT 1, Merge 1: as the paper calls them."""
    return kind.capitalize() if kind in ("base", "start") else f"{'SFT' if kind == 'sft' else 'Merge'} {iteration}"


def summary(root: Path, run_id: str) -> dict[str, Any]:
    """Status, phases and accuracies of a run.

    Raises:
        ValueError: no such run.
    """
    run = find_run(root, run_id)
    status, error = observed_status(run)
    rows = read_run(run, {}).rows
    phases = [
        {key: str(row[key]) if key.endswith("_at") and row[key] else row[key] for key in
         ("iteration", "phase", "status", "done", "total", "unit", "started_at", "ended_at")}
        for row in rows["phases"]
    ]  # fmt: skip
    evals = [
        {"checkpoint": checkpoint_name(row["kind"], row["iteration"])}
        | {key: row[key] for key in ("iteration", "kind", "task", "domain", "num_questions", "num_correct")}
        | {key: row[key] for key in ("accuracy", "ci_low", "ci_high")}
        for row in rows["evals"]
    ]
    costs, prices = ledger.of_rows(rows, run_id)
    return {
        "run_id": run_id,
        "status": status,
        "error": error,
        "config": read_json(run.config)["config"],
        "phases": phases,
        "evals": evals,
        "cost": {"phases": _records(costs), "total": ledger.total_of(costs), "per_point": _records(prices)},
    }


def _records(frame: DataFrame) -> list[dict[str, Any]]:
    """Rows as JSON has them: what is missing is null."""
    return frame.astype(object).where(frame.notna(), None).to_dict("records")


def print_summary(console: Console, found: dict[str, Any]) -> None:
    """Print what `summary` returns."""
    config = found["config"]
    console.print(f"{found['run_id']}: {found['status']}", style="bold")
    console.print(f"{config['method']} on {config['train_task']}, base {config['model']}", markup=False)
    if found["error"]:
        console.print(found["error"], style="red" if found["status"] == "failed" else "yellow", markup=False)
    if found["evals"]:
        console.print(accuracy_table(found["evals"]))
    costs, prices = (DataFrame(found["cost"][name]) for name in ("phases", "per_point"))
    if len(costs):
        console.print(words_table(ledger.phase_table(ledger.typed(costs)), "cost"))
    if len(prices):
        names = [checkpoint_name(row.kind, row.iteration) for row in prices.itertuples()]
        title = "cost of a point gained over the base (95 %), evaluation and analysis left out"
        console.print(words_table(ledger.price_table(prices, names), title))


def words_table(frame: DataFrame, title: str) -> Table:
    """A frame of words for the terminal: names on the left, numbers on the right."""
    table = Table(title=title)
    for column in frame:
        is_name = column in ledger.NAMES
        table.add_column(column, justify="left" if is_name else "right", no_wrap=is_name)
    for row in frame.itertuples(index=False, name=None):
        table.add_row(*map(escape, row))
    return table


def accuracy_table(evals: list[dict[str, Any]]) -> Table:
    """One row per checkpoint, one column per task: accuracy in per cent with its 95 % interval."""
    tasks = list(dict.fromkeys((row["domain"], row["task"]) for row in evals))
    counts = {row["task"]: row["num_questions"] for row in evals}
    table = Table("", *(f"{domain} {task}\nn = {counts[task]}" for domain, task in tasks), "OOD\nmean")
    table.title = "accuracy, % (95 % Wilson interval)"
    for name in dict.fromkeys(row["checkpoint"] for row in evals):
        mine = {row["task"]: row for row in evals if row["checkpoint"] == name}
        cells = [
            f"{100 * r['accuracy']:.1f} ({100 * r['ci_low']:.0f} to {100 * r['ci_high']:.0f})" if r else ""
            for r in (mine.get(task) for _, task in tasks)
        ]
        ood = [row["accuracy"] for row in mine.values() if row["domain"] == "OOD"]
        table.add_row(name, *cells, f"{100 * sum(ood) / len(ood):.1f}" if ood else "")
    return table


def merge_lines(report: dict[str, Any]) -> list[str]:
    """What a merge did, for people."""
    dropped = report["drop_rate_achieved"]
    lines = [
        f"{report['num_tensors_merged']} tensors, {report['num_parameters']:,} parameters, {report['seconds']:.1f} s",
        f"alpha {report['alpha']}, drop_rate {report['drop_rate']}, seed {report['seed']}",
        "changed entries dropped: " + ("none changed" if dropped is None else f"{100 * dropped:.2f} %"),
        f"|delta| {report['delta_norm']:.4g}, after DARE {report['delta_norm_after_dare']:.4g}",
        f"|merged - base| {report['moved_from_base']:.4g}"
        + (f", expected {expected:.4g}" if (expected := report["moved_from_base_expected"]) is not None else ""),
    ]
    if "num_rounded" in report:  # not in reports of the first version
        share = 100 * report["num_rounded"] / report["num_parameters"]
        lines.append(f"rounded to the base's dtype: {share:.1f} % of the entries")
        lines.append(f"{report['num_tensors_copied']} tensors copied as they are, {report['num_tensors_tied']} tied")
    lines += ["WARNING: identical to the base"] * report["identical_to_base"]
    lines += ["WARNING: identical to sft"] * report["identical_to_sft"]
    return lines
