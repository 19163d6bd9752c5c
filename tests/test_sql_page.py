"""Page SQL: what it answers, what it refuses, the schema it shows, and a person at it in a real browser."""

import ast
import json
from pathlib import Path

import pandas as pd
import pytest
from streamlit.testing.v1 import AppTest

from tests.conftest import ROOT
from workbench import queries, query_charts, store
from workbench.ingest import TABLES
from workbench.rundir import store_path


@pytest.fixture
def db(home):
    """A store with a run in it."""
    store.query(store_path(home), "SELECT 1")  # makes the tables
    with store.connect(store_path(home), read_only=False) as connection:
        connection.execute(
            "INSERT INTO evals SELECT 'r', 'r/' || i || '/' || k, i, k, 'gsm8k', 'ID', 40, 20, 0.5, 0.35, 0.65, now() "
            "FROM range(3) t(i), (VALUES ('sft'), ('merged')) u(k)"
        )
        connection.execute(
            "INSERT INTO runs SELECT 'r', 'imm', 'm', 't', [], 3, 0.5, 0.2, 0, '{}', now(), 'done', now(), 3, '', NULL"
        )
    return store_path(home)


def test_the_schema_beside_the_query_is_the_stores():
    shown = queries.schema()
    for table, columns in TABLES.items():
        assert [column.name for column in shown[table]] == list(columns), table
    accuracy = next(column for column in shown["evals"] if column.name == "ci_low")
    assert (accuracy.kind, accuracy.comment) == ("DOUBLE", "Wilson, 95 %")


@pytest.mark.parametrize("name", queries.EXAMPLES)
def test_the_examples_can_be_asked(name, db):
    found, more = queries.ask(db, queries.EXAMPLES[name])
    assert not more and len(found.columns) > 3


HOSTILE = [
    "SELECT * FROM read_text('{secret}')",
    "SELECT * FROM read_csv('{secret}', columns = {{'line': 'VARCHAR'}})",
    "SELECT * FROM '{secret}'",
    "SELECT * FROM glob('{folder}/*')",
    "SELECT * FROM sniff_csv('{secret}')",
    "SELECT * FROM read_text('http://127.0.0.1:9/x')",
    "COPY evals TO '{folder}/out.csv'",
    "EXPLAIN ANALYZE COPY evals TO '{folder}/out.csv'",
    "SELECT * FROM query('COPY evals TO ''{folder}/out.csv''')",
    "EXPORT DATABASE '{folder}/out'",
    "ATTACH '{folder}/out.db'",
    "SELECT * FROM enable_logging(storage = 'file', storage_config = {{'path': '{folder}/out'}})",
    "SET profiling_output = '{folder}/out.json'",
    "SET enable_external_access = true",
    "SELECT 1; COPY evals TO '{folder}/out.csv'",
    "INSTALL httpfs",
    "DELETE FROM evals",
    "WITH gone AS (DELETE FROM evals RETURNING *) SELECT * FROM gone",
    "EXPLAIN ANALYZE DELETE FROM evals",
    "DROP TABLE evals",
    "CREATE TABLE mine AS SELECT 1",
    "SELECT * FROM rows",
    "SELECT getenv('HOME')",
    "",
]  # fmt: skip


@pytest.mark.parametrize("sql", HOSTILE)
def test_files_and_writing_are_out_of_reach(sql, db, tmp_path):
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "secret.txt").write_text("swordfish")
    rows = pd.DataFrame({"mine": [1]})  # DuckDB would find frames of whoever calls it by their names
    with pytest.raises(ValueError) as refused:
        queries.ask(db, sql.format(secret=folder / "secret.txt", folder=folder))
    assert "swordfish" not in str(refused.value) and "\n" not in str(refused.value) and len(rows) == 1
    assert [path.name for path in folder.iterdir()] == ["secret.txt"]
    assert store.query(db, "SELECT count(*) AS n FROM evals")["n"][0] == 6


def test_rows_time_and_size_are_limited(db, monkeypatch):
    with pytest.raises(ValueError, match="MiB"):
        queries.ask(db, "SELECT repeat('x', 80000000)")
    monkeypatch.setattr(queries, "TIMEOUT_S", 0.3)
    found, more = queries.ask(db, "SELECT * FROM range(1000000)")
    assert len(found) == queries.MAX_ROWS and more
    with pytest.raises(ValueError, match="given up after 0.3 s"):
        queries.ask(db, "SELECT sum(a.range * b.range) FROM range(1000000) a, range(1000000) b")


def test_an_error_is_one_sentence(db):
    with pytest.raises(ValueError, match=r'^Table with name eval does not exist! Did you mean "evals"\? \(line 2\)$'):
        queries.ask(db, "SELECT *\nFROM eval")


def open_page():
    return AppTest.from_file(str(ROOT / "pages" / "sql.py"), default_timeout=30).run()


def test_the_page_answers_remembers_and_says_what_is_wrong(db):
    page = open_page()
    assert not page.exception and "10,000 rows" in page.caption[0].value and "10 s" in page.caption[0].value
    page.text_area[0].set_value("SELECT iteration, kind, accuracy FROM evals ORDER BY ALL")
    page.button[0].click().run()
    assert not page.exception and len(page.dataframe[0].value) == 6
    assert [box.label for box in page.selectbox] == ["x", "y", "Colour"]
    assert [box.value for box in page.selectbox] == ["iteration", "accuracy", "kind"]
    for kind in ("bar", "scatter"):
        page.get("button_group")
        page.session_state["sql_kind"] = kind
        assert not page.run().exception
    page.text_area[0].set_value("DELETE FROM evals")
    page.button[0].click().run()
    assert "one SELECT" in page.error[0].value and not page.dataframe
    assert page.session_state["sql_asked"] == "DELETE FROM evals"


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT 1 AS a, 'x' AS a, NULL AS b",
        "SELECT [1] AS w, 1 AS n FROM range(3)",
        "FROM runs WHERE false",
        "SELECT uuid(), {'a': [1, 2]} AS s, 'b'::BLOB AS bytes, now() AS t, 2::DECIMAL(9,2)",
        "DESCRIBE evals",
        "EXPLAIN SELECT 1",
    ],
)
def test_whatever_a_query_gives_is_shown(sql, db):
    page = open_page()
    page.text_area[0].set_value(sql)
    page.button[0].click().run()
    assert not page.exception and page.dataframe


@pytest.mark.parametrize("kind", ["line", "bar", "scatter"])
def test_a_chart_of_a_query_has_every_row_and_its_interval(kind, db):
    rows, _ = queries.ask(db, queries.EXAMPLES["Accuracy by checkpoint"])
    figure = query_charts.drawn(rows, kind, "checkpoint", "accuracy", "task")
    assert sum(len(trace.x) for trace in figure.data) == len(rows) == 6
    assert list(figure.data[0].error_y.array) == pytest.approx(list(rows["ci_high"] - rows["accuracy"]))


def test_open_in_notebook_writes_the_query(db, home):
    from workbench import notebook, recipes

    sql = "SELECT 'a \"quoted\" word' AS word, 1 AS n\nFROM range(2)"
    path = notebook.write(home, "query", notebook.of_recipe(home, recipes.query, {"sql": sql}))
    code = ["".join(c["source"]) for c in json.loads(Path(path).read_text())["cells"] if c["cell_type"] == "code"]
    *before, last = ast.parse("\n".join(code)).body
    names: dict = {}
    exec(compile(ast.Module(before, []), "notebook", "exec"), names)  # as Jupyter does
    assert len(eval(compile(ast.Expression(last.value), "notebook", "eval"), names)) == 2
