"""The companion notebooks run from top to bottom on a real run, and are kept without output."""

import json
import shutil

import nbformat
import pytest
from nbclient import NotebookClient

from tests.conftest import ROOT
from workbench import store
from workbench.labdir import all_labs
from workbench.processes import end_group

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, finished_run, home):
    shutil.copytree(finished_run.path, home / "runs" / finished_run.run_id)
    store.rebuild(home)
    notebook = nbformat.read(path, as_version=4)
    try:
        NotebookClient(notebook, timeout=240, kernel_name="python3").execute(cwd=str(home))
    finally:
        for lab in all_labs(home):
            end_group(lab, 5)
    drawn = [
        o for c in notebook.cells for o in c.get("outputs", []) if "application/vnd.plotly.v1+json" in o.get("data", {})
    ]
    assert len(drawn) >= 3


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_kept_without_output(path):
    for cell in json.loads(path.read_text())["cells"]:
        assert not cell.get("outputs") and not cell.get("execution_count")
