"""The command `gc`: make room, by what can be made again."""

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from workbench import disk, retention
from workbench.rundir import home

out = Console(highlight=False)


def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would go.")] = False,
    states: Annotated[
        bool, typer.Option("--states", help="Also what stopped and failed runs would go on from: they train again.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Remove what can be made again and nobody needs: older merges' weights, left-over optimizer states, scratch."""
    root = home()
    found, kept = retention.spares(root, states=states)
    sizes = {spare.path: retention.freed([spare.path]) for spare in found}
    total = retention.freed([spare.path for spare in found])
    gone = found if dry_run else [spare for spare in found if retention.remove(root, spare)]
    if as_json:
        rows = [{"path": str(s.path), "kind": s.kind, "run_id": s.run_id, "bytes": sizes[s.path], "why": s.why}
                for s in gone]  # fmt: skip
        stays = [{"path": str(k.path), "run_id": k.run_id, "why": k.why} for k in kept]
        typer.echo(json.dumps({"dry_run": dry_run, "bytes": total, "gone": rows, "kept": stays}, indent=2))
        return
    table = Table("what", "size", "where", "why it may go", show_edge=False)
    for spare in gone:
        shared = "" if sizes[spare.path] else " (shared with another run by hard links)"
        where = str(spare.path.relative_to(root))
        table.add_row(spare.kind, disk.size(sizes[spare.path]) + shared, escape(where), escape(spare.why))
    if gone:
        out.print(table)
    for stays in kept:
        out.print(f"stays: {stays.path.relative_to(root)}: {stays.why}", markup=False, soft_wrap=True)
    word = "would come free" if dry_run else "came free"
    out.print(f"{disk.size(total)} {word}" if gone else "There is nothing that could go.")
