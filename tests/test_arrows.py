"""Who may import whom, and that the screen opens without torch."""

import ast
import subprocess
import sys

import pytest

from tests.conftest import ROOT

# "cluster" is asked by many whether there is one, `cluster.here()`; ray is loaded where there is.
FREE = {"config", "settings", "rundir", "events", "redact"}
MAY = {
    "core": {"core"},
    "tasks": {"tasks", "core", "jobs", "rundir"},
    "engines": {"cluster", "engines", "core", "config", "checkpoints"},
    "prompting": {"core"},
    "grading": {"core"},
    "regrade": {"core", "grading", "jobs", "launch", "store", "tasks"},
    "grading_cli": {"core", "grading", "jobs", "regrade", "tasks"},
    "arms": {"core", "store"},
    "compare": {"checks", "core", "launch", "preflight"},
    "evals": {"core", "store"},
    "paper": {"charts"},
    "eval_charts": {"charts"},
    "solutions": {"checkpoints", "core", "jobs", "prompting", "store", "tasks"},
    "checks": {
        "cluster",
        "checkpoints",
        "core",
        "engines",
        "examples",
        "jobs",
        "machine",
        "mergeable",
        "preflight",
        "prompting",
        "shapes",
        "tasks",
    },
    "shapes": {"checkpoints"},
    "mergeable": {"checkpoints", "core"},
    "machine": set(),
    "memory": {"machine", "shapes"},
    "estimate": {"core", "engines", "jobs", "machine", "memory", "plan", "shapes", "tasks"},
    "preflight": {"checkpoints", "core", "estimate", "machine", "memory"},
    "origins": {"checkpoints", "section"},
    "dry_run": {
        "checkpoints",
        "checks",
        "engines",
        "estimate",
        "jobs",
        "launch",
        "machine",
        "memory",
        "origins",
        "plan",
        "preflight",
        "shapes",
        "tasks",
    },
    "labdir": {"jobs"},
    "lab": {"analysis", "labdir", "core", "checkpoints", "jobs", "plan", "processes", "tasks"},
    "merging": {"merging", "core", "checkpoints", "labdir", "mergeable"},
    "examples": {"core"},
    "analysis": {"analysis", "core", "checkpoints", "examples", "mergeable", "merging"},
    "comparisons": {"checkpoints", "examples", "ingest", "jobs", "queueing", "processes", "tasks"},
    "layer_charts": {"charts", "core"},
    "phases": {
        "cluster",
        "phases",
        "analysis",
        "examples",
        "core",
        "tasks",
        "engines",
        "checkpoints",
        "jobs",
        "mergeable",
        "merging",
        "lab",
        "labdir",
        "machine",
        "place",
        "queueing",
        "processes",
        "prompting",
        "disk",
        "store",
    },
    "pocket": {"pocket", "core"},
    "checkpoints": set(),
    "cluster": {
        "analysis",
        "cluster",
        "core",
        "engines",
        "examples",
        "jobs",
        "lab",
        "labdir",
        "launch",
        "merging",
        "phases",
        "processes",
        "disk",
        "runner",
        "stopping",
        "twins",
    },
    "config_cluster": {"section"},
    "section": set(),
    "config_training": {"section"},
    "config": {"config_cluster", "config_training", "section"},
    "settings": set(),
    "rundir": set(),
    "events": set(),
    "jobs": set(),
    "ingest": {"core", "labdir"},
    "stopping": set(),
    "storefile": {"stopping"},
    "recording": {"ingest", "labdir", "stopping", "storefile"},
    "store": {"recording", "storefile"},
    "charts": set(),
    "processes": set(),
    "queueing": {"machine", "processes"},
    "place": {"processes", "queueing"},
    "supervisor": {"alerts", "launch", "machine", "processes", "queueing"},
    "last_words": {"store"},
    "alerts": {"queueing"},
    "disk": set(),
    "endings": {"disk", "stopping"},
    "retention": {"checkpoints", "comparisons", "jobs", "labdir", "launch", "plan", "processes"},
    "gc_cli": {"disk", "retention"},
    "launch": {"cluster", "checkpoints", "checks", "disk", "jobs", "machine", "processes", "queueing"},
    "plan": {"core", "jobs"},
    "runner": {
        "cluster",
        "core",
        "runner",
        "plan",
        "queueing",
        "checkpoints",
        "commands",
        "disk",
        "endings",
        "jobs",
        "launch",
        "mergeable",
        "merging",
        "retention",
        "stopping",
        "store",
        "processes",
        "twins",
    },
    "commands": {"cluster", "jobs", "machine"},
    "twins": {"checkpoints", "core", "processes", "stopping"},
    "chosen_runs": set(),
    "screen": {"chosen_runs", "paths", "launch", "ledger", "queueing", "report", "store"},
    "queue_rows": {"queueing"},
    "queue_cli": {"alerts", "queue_rows", "queueing"},
    "ledger": {"core", "store"},
    "report": {"ingest", "launch", "ledger"},
    "merges": {"core", "labdir"},
    "merge_charts": {"charts", "core", "merges"},
    "notebook": set(),
    "recipes": {
        "arms",
        "charts",
        "comparisons",
        "eval_charts",
        "evals",
        "lab",
        "labdir",
        "launch",
        "layer_charts",
        "merge_charts",
        "merges",
        "paper",
        "queries",
        "query_charts",
        "store",
    },
    "widgets": {"charts", "notebook"},
    "app": {"access", "chosen_runs", "screen", "widgets"},
    "access": set(),
    "paths": set(),
    "queries": {"recording", "store", "storefile"},
    "query_charts": {"charts"},
}


def imported(path):
    """The parts of workbench that a file imports, by their first name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "workbench":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("workbench."):
            found.add(node.module.split(".")[1])
    return found


@pytest.mark.parametrize("part", MAY)
def test_arrows(part):
    place = ROOT / "workbench" / part
    files = list(place.glob("*.py")) if place.is_dir() else [place.with_suffix(".py")]
    for file in files:
        assert imported(file) <= MAY[part] | FREE, file.name


@pytest.mark.parametrize("page", sorted((ROOT / "pages").glob("*.py")), ids=lambda page: page.stem)
def test_pages_draw_and_ask_only(page):
    assert (
        imported(page)
        <= {
            "store",
            "arms",
            "charts",
            "chosen_runs",
            "compare",
            "launch",
            "queue_rows",
            "queueing",
            "screen",
            "tasks",
            "widgets",
            "lab",
            "labdir",
            "merges",
            "merge_charts",
            "layer_charts",
            "comparisons",
            "checks",
            "evals",
            "eval_charts",
            "grading",
            "ledger",
            "origins",
            "paper",
            "prompting",
            "recipes",
            "regrade",
            "solutions",
            "queries",
            "query_charts",
        }
        | FREE
    )
    assert not any(isinstance(node, ast.Try) for node in ast.walk(ast.parse(page.read_text())))


@pytest.mark.parametrize(
    "module",
    [
        "store",
        "charts",
        "launch",
        "config",
        "screen",
        "runner",
        "cli",
        "ledger",
        "report",
        "terminal",
        "lab",
        "merge_charts",
        "layer_charts",
        "comparisons",
        "recipes",
        "analysis.index",
        "analysis.change",
        "layers_cli",
        "preflight",
        "dry_run",
        "origins",
    ],
)
def test_the_screens_side_never_loads_torch(module):
    probe = f"import workbench.{module}, sys; sys.exit(bool({{'torch', 'transformers', 'vllm'}} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", probe]).returncode == 0
