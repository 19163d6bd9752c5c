"""The workbench's screen: `streamlit run workbench/app.py`."""

from pathlib import Path

import streamlit as st

from workbench import access, chosen_runs, screen, widgets

PAGES = Path(__file__).parents[1] / "pages"

st.set_page_config(page_title="Self-improvement workbench", page_icon="🌱", layout="wide")
admitted = access.guard()
pages = [
    st.Page(PAGES / "runs.py", title="Runs", default=True),
    st.Page(PAGES / "new_run.py", title="New run", url_path="new"),
    st.Page(PAGES / "live.py", title="Live run", url_path="live"),
    st.Page(PAGES / "queued.py", title="Queue", url_path="queue"),
    st.Page(PAGES / "accuracy.py", title="Accuracy", url_path="accuracy"),
    st.Page(PAGES / "solutions.py", title="Solutions", url_path="solutions"),
    st.Page(PAGES / "merge.py", title="Merge", url_path="merge"),
    st.Page(PAGES / "layers.py", title="Layers", url_path="layers"),
    st.Page(PAGES / "sql.py", title="SQL", url_path="sql"),
]
page = st.navigation(pages, position="hidden")  # also for who is not in yet: whoever signs in is on the page asked for
if admitted:
    chosen_runs.ids()
    for other in pages:  # a menu of our own: Streamlit's forgets which run was chosen
        st.sidebar.page_link(other, query_params=chosen_runs.query())
    screen.guarded(page.run)
    widgets.address(chosen_runs.query())
