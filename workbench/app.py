"""The workbench's screen: `streamlit run workbench/app.py`."""

from pathlib import Path

import streamlit as st

PAGES = Path(__file__).parents[1] / "pages"

st.set_page_config(page_title="Self-improvement workbench", page_icon="🌱", layout="wide")
st.navigation(
    [
        st.Page(PAGES / "runs.py", title="Runs", default=True),
        st.Page(PAGES / "new_run.py", title="New run", url_path="new"),
        st.Page(PAGES / "live.py", title="Live run", url_path="live"),
        st.Page(PAGES / "merge.py", title="Merge", url_path="merge"),
        st.Page(PAGES / "layers.py", title="Layers", url_path="layers"),
    ]
).run()
