"""The companion notebooks run from top to bottom on a real store; so do those that the screen writes of its charts."""

import inspect
import json
import os
import re
import shutil

import nbformat
import pytest
from nbclient import NotebookClient
from plotly.graph_objects import Figure
from streamlit.testing.v1 import AppTest

from tests.conftest import ROOT
from workbench import labdir, launch, notebook, recipes, rundir, store, widgets
from workbench.labdir import all_labs
from workbench.processes import end_group

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PAGES = sorted((ROOT / "pages").glob("*.py"))
PLOTLY = "application/vnd.plotly.v1+json"


SMALLER = {
    "01_quickstart": {'"num_questions": 60': '"num_questions": 24', '"eval_questions": 40': '"eval_questions": 8'},
    "03_merge_sweep": {"questions = 40": "questions = 8"},
}
"""What is changed in a notebook for its test: how many questions it asks."""


def smaller(path):
    """A notebook as it is kept, but for the number of its questions."""
    text = path.read_text()
    for ours, fewer in SMALLER.get(path.stem, {}).items():
        ours, fewer = (json.dumps(words)[1:-1] for words in (ours, fewer))
        assert ours in text, ours
        text = text.replace(ours, fewer)
    return nbformat.reads(text, as_version=4)


def run_cells(cells, home):
    """Execute a notebook beside the home, whose files no cell may need to know by a relative path."""
    NotebookClient(cells, timeout=600, kernel_name="python3").execute(cwd=str(home))


def figures(cells):
    """The charts among a notebook's outputs."""
    return [o["data"][PLOTLY] for c in cells for o in c.get("outputs", []) if PLOTLY in o.get("data", {})]


def without_template(figure):
    """What a figure says of itself: Streamlit puts its own theme below all that are made beside it."""
    layout = {name: value for name, value in figure["layout"].items() if name != "template"}
    return figure["data"], layout


@pytest.fixture(scope="module")
def executed(finished_run, tmp_path_factory):
    """A home with a finished run, on which all companion notebooks were executed; what each came to."""
    home = tmp_path_factory.mktemp("notebooks")
    shutil.copytree(finished_run.path, home / "runs" / finished_run.run_id)
    store.rebuild(home)
    before = os.environ.get("WORKBENCH_HOME")
    os.environ["WORKBENCH_HOME"] = str(home)
    found = {}
    try:
        for path in NOTEBOOKS:
            found[path.stem] = smaller(path)
            run_cells(found[path.stem], home)
        yield home, found
    finally:
        for lab in all_labs(home):
            end_group(lab, 5)
        for run in rundir.all_runs(home):
            if launch.observed_status(run)[0] not in launch.ENDED:
                launch.stop(home, run.run_id)
        os.environ.pop("WORKBENCH_HOME")
        if before:
            os.environ["WORKBENCH_HOME"] = before


@pytest.mark.parametrize("name", ["01_quickstart", "02_layer_importance", "03_merge_sweep", "04_paper_figures"])
def test_a_companion_notebook_runs(name, executed):
    assert len(figures(executed[1][name].cells)) >= 3


def test_the_papers_figures_are_drawn_and_what_is_lacking_is_said(executed):
    cells = executed[1]["04_paper_figures"].cells
    said = "".join(o.get("data", {}).get("text/plain", "") for c in cells for o in c.get("outputs", []))
    assert len(figures(cells)) == 6
    assert "tables.csv has no row" in said and "No finished real run" in said and "learned from a teacher" in said


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_companion_notebook_is_kept_without_output_and_defines_nothing(path):
    for cell in json.loads(path.read_text())["cells"]:
        assert not cell.get("outputs") and not cell.get("execution_count")
        assert not re.search(r"^\s*(def|class) ", "".join(cell["source"]), re.MULTILINE)


def another_seed(run, seed):
    """A copy of a run under another name, as one of another seed."""
    copy = run.path.with_name(f"{run.run_id}-again")
    shutil.copytree(run.path, copy)
    for file in [*copy.rglob("*.json"), *copy.rglob("*.jsonl")]:
        file.write_text(file.read_text().replace(run.run_id, copy.name))
    written = rundir.read_json(copy / "config.json")
    written["config"]["seed"] = seed
    rundir.write_json(copy / "config.json", written)
    return copy.name


@pytest.fixture
def drawn(executed, monkeypatch):
    """Opens pages; every chart they have drawn: (figure, or None where the browser draws it; recipe, parameters)."""
    found = []
    chart, merge_lab = widgets.chart, widgets.merge_lab

    def seen(figure, key, recipe, **parameters):
        found.append((figure, recipe, parameters))
        chart(figure, key, recipe, **parameters)

    def lab_seen(pair, lab_id, merge, key, recipe):
        found.append((None, recipe, {"lab_id": lab_id, "merge": merge}))
        return merge_lab(pair, lab_id, merge, key, recipe)

    monkeypatch.setattr(widgets, "chart", seen)
    monkeypatch.setattr(widgets, "merge_lab", lab_seen)
    return found


def opened(name, run_id=None):
    page = AppTest.from_file(str(ROOT / "pages" / f"{name}.py"), default_timeout=60)
    if run_id:
        page.query_params["run"] = run_id
    page.run()
    assert not page.exception, name
    return page


def go_through_the_pages(home, run_id):
    """Open every page, and what of it has charts of its own."""
    (lab,) = (lab for lab in all_labs(home) if lab.points.exists())
    for path in PAGES:
        opened(path.stem, labdir.read_config(lab).run_id if path.stem == "merge" else run_id)
    several = opened("accuracy", run_id)
    several.multiselect[0].set_value([run.run_id for run in rundir.all_runs(home)]).run()
    several.toggle[0].set_value(False).run()
    layers = opened("layers", run_id)
    layers.sidebar.radio[0].set_value("base").run()
    layers.main.toggle[0].set_value(True).run()
    layers.sidebar.multiselect[0].set_value([r.run_id for r in rundir.all_runs(home) if r.run_id != run_id]).run()
    layers.sidebar.toggle[0].set_value(True).run()
    if any(path.stem == "sql" for path in PAGES):
        sql = opened("sql")
        next(button for button in sql.button if button.label == "Run").click().run()


def test_every_chart_of_the_app_is_drawn_again_by_its_notebook(executed, drawn, finished_run):
    home, _ = executed
    another_seed(rundir.all_runs(home)[-1], 1)
    store.rebuild(home)
    go_through_the_pages(home, finished_run.run_id)
    charts = {f"{recipe.__name__} {parameters}": (figure, recipe, parameters) for figure, recipe, parameters in drawn}
    all_in_one = nbformat.v4.new_notebook()
    for _, recipe, parameters in charts.values():
        path = notebook.write(home, recipe.__name__, notebook.of_recipe(home, recipe, parameters))
        written = nbformat.read(path, as_version=4)
        nbformat.validate(written)
        all_in_one.cells += [nbformat.v4.new_code_cell("%reset -f"), *written.cells]
    run_cells(all_in_one, home)
    again = figures(all_in_one.cells)
    for (name, (figure, _, _)), redrawn in zip(charts.items(), again, strict=True):
        assert figure is None or without_template(json.loads(figure.to_json())) == without_template(redrawn), name
    functions = dict(inspect.getmembers(recipes, inspect.isfunction))
    known = {name for name, recipe in functions.items() if recipe.__annotations__["return"] is Figure}
    assert {recipe.__name__ for _, recipe, _ in drawn} == known, "a recipe that no page was seen to use"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_a_page_draws_charts_by_the_widget_that_offers_the_notebook(path):
    assert not re.search(r"\b(plotly|line|bar|area|scatter|altair|vega_lite|pydeck|graphviz)_chart\(", path.read_text())


def test_a_notebook_that_somebody_may_have_edited_is_not_written_over(tmp_path):
    first = notebook.write(tmp_path, "a", [("code", "1\n2")])
    before = first.read_text().replace('"outputs": []', '"outputs": [ ]')
    first.write_text(before)
    assert notebook.write(tmp_path, "a", [("code", "1\n2")]) == first and first.read_text() == before
    first.write_text("edited, and broken")
    assert notebook.write(tmp_path, "a", [("code", "1\n2")]).name == "a-2.ipynb"
    assert notebook.write(tmp_path, "a", [("code", "3")]).name == "a-3.ipynb"
    assert first.read_text() == "edited, and broken"
    with pytest.raises(ValueError, match="name has 1 to 150 of the characters .* got '../a'; leave out the others"):
        notebook.write(tmp_path, "../a", [])


def test_a_query_is_written_as_one_reads_it(tmp_path):
    cells = notebook.of_recipe(tmp_path, recipes.query, {"sql": "SELECT *\nFROM runs"})
    assert 'sql = """SELECT *\nFROM runs"""' in cells[1][1] and cells[-1] == ("code", "store.query(db, sql)")
    odd = "SELECT '\"\"\"'\n, '\\'"
    scope = {}
    exec(notebook.of_recipe(tmp_path, recipes.query, {"sql": odd})[1][1].split("\n")[-1], scope)
    assert scope["sql"] == odd


def test_a_running_jupyterlab_is_linked_to_without_its_token(tmp_path, monkeypatch):
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    path = notebook.write(tmp_path / "my home", "a", [])
    assert notebook.address(path) is None
    server = {"pid": os.getpid(), "root_dir": str(tmp_path), "url": "http://127.0.0.1:8888/", "token": "secret"}
    rundir.write_json(tmp_path / "runtime" / "jpserver-1.json", server)
    assert notebook.address(path) == "http://127.0.0.1:8888/lab/tree/my%20home/notebooks/a.ipynb"
    rundir.write_json(tmp_path / "runtime" / "jpserver-1.json", server | {"root_dir": str(tmp_path / "elsewhere")})
    assert notebook.address(path) is None


def test_jupyterlab_is_for_this_machine_alone(tmp_path):
    command = notebook.lab_command(tmp_path, 8888)
    assert "--ServerApp.ip=127.0.0.1" in command
    root = next(word.partition("=")[2] for word in command if word.startswith("--ServerApp.root_dir="))
    assert tmp_path.is_relative_to(root) and NOTEBOOKS[0].is_relative_to(root)
