"""Ask the store anything, read-only: the schema beside the query, the answer as a table, a CSV file or a chart."""

import html
import time

import pandas as pd
import streamlit as st

from workbench import queries, query_charts, recipes, rundir, screen, widgets

DB = rundir.store_path(rundir.home())
STYLE = """<style>
.st-key-sql_text textarea {font-family: monospace; font-size: 0.85rem; line-height: 1.5}
.workbench-schema {font-size: 0.9rem}
.workbench-schema summary {cursor: pointer; padding: 0.25rem 0; font-weight: 500}
.workbench-schema details[open] {padding-bottom: 0.5rem}
.workbench-schema p {margin: 0.15rem 0 0.15rem 1.1rem; line-height: 1.35}
.workbench-schema code {font-size: 0.85rem}
.workbench-schema small {opacity: 0.65}
</style>"""
MOST_COLOURS = 20
# Numbers that say which row it is, or stand beside the one that is measured.
KEYS = ("iteration", "temperature", "seed", "sample", "layer", "ci_low", "ci_high", "n")


def take_example() -> None:
    """Put the chosen example into the box."""
    if name := st.session_state["sql_example"]:
        st.session_state["sql_text"] = queries.EXAMPLES[name]


def editor() -> None:
    """Examples, the query, and the answer to it; the last one of the session is there again."""
    state = st.session_state
    state.setdefault("sql_text", state.get("sql_asked", next(iter(queries.EXAMPLES.values()))))
    st.pills("Examples", list(queries.EXAMPLES), key="sql_example", on_change=take_example)
    with st.form("sql_form", border=False):
        sql = st.text_area("Query", key="sql_text", height=250, label_visibility="collapsed")
        run, words = st.columns([1, 5], vertical_alignment="center")
        asked = run.form_submit_button("Run", type="primary", width="stretch")
        words.caption(
            f"Ctrl+Enter runs it. Read-only, the store alone; the first {queries.MAX_ROWS:,} rows, "
            f"at most {queries.TIMEOUT_S:.0f} s."
        )
    if asked:
        state["sql_asked"], began = sql, time.monotonic()
        found = screen.attempt(lambda: queries.ask(DB, sql))
        state["sql_answer"] = found and (sql, *found, time.monotonic() - began)
    if state.get("sql_answer"):
        answer(*state["sql_answer"])


def answer(sql: str, rows: pd.DataFrame, more: bool, seconds: float) -> None:
    """The rows, and what can be done with them."""
    said, save = st.columns([5, 1], vertical_alignment="center")
    count = f"{len(rows):,} row{'s' * (len(rows) != 1)}"
    said.markdown(
        f"**The first {count}**; there are more: choose fewer, or count them."
        if more
        else f"**{count}** in {seconds:.2g} s"
    )
    save.download_button("CSV", rows.to_csv(index=False), "query.csv", "text/csv", width="stretch")
    table, drawn = st.tabs(["Table", "Chart"])
    with table:
        st.dataframe(rows, hide_index=True, placeholder="NULL", key="sql_rows")
        widgets.open_in_notebook("sql_notebook", recipes.query, sql=sql)
    with drawn:
        draw(sql, rows)


def draw(sql: str, rows: pd.DataFrame) -> None:
    """The rows as a chart of one's choice."""
    numbers = [name for name in rows if pd.api.types.is_numeric_dtype(rows[name])]
    if not numbers or rows.empty:
        st.info("A chart needs rows, and a column of numbers for its height.")
        return
    x, y, colour = suggested(rows, numbers)
    one, two, three, four = st.columns([1.5, 1, 1, 1])
    kind = one.segmented_control("Chart", ["line", "bar", "scatter"], default="line", required=True, key="sql_kind")
    x = two.selectbox("x", list(rows), index=list(rows).index(x))
    y = three.selectbox("y", numbers, index=numbers.index(y))
    colours = [None, *(name for name in rows if name not in (x, y))]
    colour = four.selectbox(
        "Colour", colours, index=colours.index(colour) if colour in colours else 0, format_func=lambda n: n or "one"
    )
    if colour and (many := rows[colour].astype(str).nunique()) > MOST_COLOURS:
        st.info(f"{colour} has {many} values, and {MOST_COLOURS} colours can be told apart; choose another column.")
        return
    figure = screen.attempt(lambda: query_charts.drawn(rows, kind, x, y, colour))
    if figure:
        widgets.chart(figure, "sql_chart", recipes.query_chart, sql=sql, kind=kind, x=x, y=y, colour=colour)


def suggested(rows: pd.DataFrame, numbers: list[str]) -> tuple[str, str, str | None]:
    """x, y and colour to begin with: what a query of ours would be drawn by."""
    names = list(rows)
    x = next((name for name in ("checkpoint", "iteration", "step", "ts") if name in names), names[0])
    measured = [name for name in numbers if name not in (x, *KEYS)]
    few = [
        name for name in names if name not in (x, *measured) and 1 < rows[name].astype(str).nunique() <= MOST_COLOURS
    ]
    words = [name for name in few if name not in numbers or name == "temperature"]
    return x, (measured or numbers)[0], words[-1] if words else None


def tables() -> None:
    """The store's tables; columns with their types and what schema.sql says of them."""
    st.markdown("**Tables**", help="A click shows the columns. Times are UTC, accuracies are fractions.")
    parts = []
    for name, columns in queries.schema().items():
        rows = "".join(
            f"<p><code>{html.escape(c.name)}</code> <small>{html.escape(c.kind.lower())}</small><br>"
            f"<small>{html.escape(c.comment)}</small></p>"
            for c in columns
        )
        parts.append(f"<details><summary>{html.escape(name)} <small>{len(columns)}</small></summary>{rows}</details>")
    st.html(f'<div class="workbench-schema">{"".join(parts)}</div>')


st.title("SQL")
st.html(STYLE)
left, right = st.columns([5, 2], gap="large")
with right:
    tables()
with left:
    editor()
