"""The command `compare`: several methods on the same seeds, in one table at the end."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer
from rich.console import Console
from rich.table import Table

from workbench import arms, charts, checks, compare, launch, origins, preflight, queueing, rundir
from workbench import dry_run as planning
from workbench.config import RunConfig
from workbench.settings import ConfigError, build_config, load_settings, parse_assignments

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)
POLL_S = 1.0


def run_comparison(
    methods: Annotated[str, typer.Option(help=f"Some of {', '.join(compare.ARMS)}.")],
    seeds: Annotated[str, typer.Option(help="Seeds, as in 0,1,2.")] = "0",
    preset: Annotated[
        str | None, typer.Option(help="A shipped preset, or a TOML or JSON file of settings; without one the defaults.")
    ] = None,
    changes: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting.")] = None,
    detach: Annotated[bool, typer.Option(help="Do not follow the runs; print their ids.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Start nothing; check it, print its cost.")] = False,
) -> None:
    """Queue a run for each method and seed; they share the base's samples. Ctrl-C ends the following alone."""
    root = rundir.home()
    settings = load_settings(preset)
    wanted = parse_assignments(changes or [])
    if taken := {"method", "seed", "group"} & wanted.keys():
        raise ConfigError(f"{min(taken)} cannot be --set in a comparison, which goes by --methods and --seeds")
    configs = compare.arms(settings, wanted, _words(methods), compare.numbers(seeds))
    said = origins.told(build_config(settings, wanted), preset, wanted)
    said["settings"] = [row for row in said["settings"] if row["setting"] not in ("method", "seed")]  # of each run
    if dry_run:
        _print_settings(said, out)
        raise typer.Exit(_print_plan(configs, root))
    run_ids = compare.launch_all(configs, root)
    said["notes"] += checks.remarks(configs[0])
    _print_settings(said, err)
    out.print(f"comparison {configs[0].group}: {len(run_ids)} runs")
    for run_id, config in zip(run_ids, configs, strict=True):
        out.print(f"{run_id}  {compare.arm_of(config)}, seed {config.seed}")
    if not detach and not _follow(root, run_ids):
        raise typer.Exit(1)


def _print_settings(said: Mapping[str, Any], console: Console) -> None:
    """What all the runs share, and where it comes from."""
    for line in [*origins.lines(said), *(f"Note: {note}" for note in said["notes"])]:
        console.print(line, markup=False, soft_wrap=True)


def _print_plan(configs: Sequence[RunConfig], root: Path) -> int:
    """What each run would take; the exit code: 0, or 2 where one of them could not go well."""
    found = [planning.report(config, root) for config in configs]
    machine, wrong = found[0]["machine"], any(one["problems"] for one in found)
    if not wrong and (machine["is_meant"] or configs[0].on == "ray"):
        found[0]["problems"] = list(filter(None, [preflight.disk_problem(configs, root)]))
    for one in found[1:]:
        one["refused_here"] = []  # much the same for each, but for the memory that was free when it was asked
    said: dict[tuple[str, str], list[str]] = {}
    for config, one in zip(configs, found, strict=True):
        for name in planning.SENTENCES:
            for line in one[name]:
                said.setdefault((name, line), []).append(f"{compare.arm_of(config)}, seed {config.seed}")
    for (name, line), runs in said.items():
        title, style = planning.SENTENCES[name]
        of = f" ({'; '.join(runs)})" if name == "problems" and wrong else ""
        out.print(f"{title}{of}: {line}", style=style, markup=False, soft_wrap=True)
    table = Table("method", "seed", "GPU hours", "disk, GB", show_edge=False)
    for config, about in zip(configs, (one["estimate"] for one in found), strict=True):
        sizes = (f"{about['gpu_hours']:.1f}", f"{about['disk_gb']['total']:.1f}") if about else ("?", "?")
        table.add_row(compare.arm_of(config), str(config.seed), *sizes)
    out.print(table)
    out.print(f"For {machine['planned_for']}; each as if alone: runs of one seed share the base's samples.")
    return 2 if wrong or found[0]["problems"] else 0


def _words(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _follow(root: Path, run_ids: list[str]) -> bool:
    """Say how each run ends, then print the table; whether all are done."""
    waited, states = list(run_ids), {}
    try:
        while waited:
            queueing.ensure(root)
            for run_id in list(waited):
                status, error = launch.observed_status(rundir.find_run(root, run_id))
                if status in launch.ENDED:
                    waited.remove(run_id)
                    states[run_id] = status
                    out.print(f"{run_id}: {status}" + (f". {error}" if error else ""), markup=False)
            time.sleep(POLL_S if waited else 0)
    except KeyboardInterrupt:
        out.print("\nThe runs go on. Watch them on the page Accuracy, or: workbench list")
        raise typer.Exit(0) from None
    db = rundir.store_path(root)
    out.print(table_of(arms.seeds_pooled(db, arms.arms_frame(db, run_ids))))
    return set(states.values()) == {"done"}


def table_of(pooled: pd.DataFrame) -> Table:
    """Accuracies by arm and checkpoint, each with its interval, n and seeds."""
    table = Table("method", "checkpoint", "seeds", "ID", "OOD mean")
    table.title = "accuracy, % (95 %: bootstrap over seeds and questions; n answers)"
    if pooled.empty:
        return table
    pooled = pooled.assign(checkpoint=charts.checkpoint_labels(pooled))
    for (arm, _, _), rows in pooled.groupby(["run_id", "iteration", "kind"], sort=False):
        cells = {
            row.domain: f"{100 * row.accuracy:.1f} ({100 * row.ci_low:.1f} to {100 * row.ci_high:.1f}, n = {row.n})"
            for row in rows.itertuples()
        }
        first = rows.iloc[0]
        table.add_row(arm, first["checkpoint"], str(first["num_seeds"]), cells.get("ID", ""), cells.get("OOD", ""))
    return table
