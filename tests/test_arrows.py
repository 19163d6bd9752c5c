"""Who may import whom, and that the screen opens without torch."""

import ast
import subprocess
import sys

import pytest

from tests.conftest import ROOT

FREE = {"config", "settings", "rundir", "events"}
MAY = {
    "core": {"core"},
    "tasks": {"tasks", "core", "jobs", "rundir"},
    "engines": {"engines", "core", "config"},
    "labdir": {"jobs"},
    "lab": {"analysis", "labdir", "core", "checkpoints", "jobs", "plan", "processes", "tasks"},
    "merging": {"merging", "core", "checkpoints", "labdir"},
    "examples": {"core"},
    "analysis": {"analysis", "core", "checkpoints", "examples", "merging"},
    "comparisons": {"checkpoints", "examples", "ingest", "jobs", "place", "processes", "tasks"},
    "layer_charts": {"charts", "core"},
    "phases": {
        "phases",
        "analysis",
        "examples",
        "core",
        "tasks",
        "engines",
        "checkpoints",
        "jobs",
        "merging",
        "lab",
        "labdir",
        "place",
        "processes",
        "store",
    },
    "pocket": {"pocket", "core"},
    "checkpoints": set(),
    "config": set(),
    "settings": set(),
    "rundir": set(),
    "events": set(),
    "jobs": set(),
    "ingest": {"core", "labdir"},
    "store": {"ingest", "labdir"},
    "charts": set(),
    "processes": set(),
    "place": {"processes"},
    "launch": {"core", "checkpoints", "examples", "jobs", "tasks", "processes"},
    "plan": {"core", "jobs"},
    "runner": {"plan", "place", "checkpoints", "jobs", "launch", "store", "processes"},
    "screen": {"launch", "report"},
    "merges": {"core", "labdir"},
    "merge_charts": {"charts", "merges"},
    "widgets": set(),
    "app": set(),
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
            "charts",
            "launch",
            "screen",
            "tasks",
            "widgets",
            "lab",
            "labdir",
            "merges",
            "merge_charts",
            "layer_charts",
            "comparisons",
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
        "report",
        "terminal",
        "lab",
        "merge_charts",
        "layer_charts",
        "comparisons",
        "analysis.index",
        "analysis.change",
        "layers_cli",
    ],
)
def test_the_screens_side_never_loads_torch(module):
    probe = f"import workbench.{module}, sys; sys.exit(bool({{'torch', 'transformers', 'vllm'}} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", probe]).returncode == 0
