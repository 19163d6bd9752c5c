"""What Streamlit does not have: charts that keep their zoom while data come in, sliders that answer while dragged.

Both are small components drawn with the plotly.js of the installed plotly package. Streamlit's own chart
becomes a new element, and loses its zoom, whenever its data change; its slider reports on release only.
"""

import json
from pathlib import Path
from typing import Any

import plotly
import streamlit as st
from plotly.graph_objects import Figure

HERE = Path(__file__).parent
LIBRARY = st.components.v1.declare_component("plotly", path=str(Path(plotly.__file__).parent / "package_data"))
PLOTLY = f"component/{LIBRARY.name}/plotly.min.js"


def _text(*names: str) -> str:
    return "\n".join((HERE / name).read_text(encoding="utf-8") for name in names)


_chart = st.components.v2.component(
    "workbench_chart",
    html='<div class="workbench-chart"></div>',
    js=_text("plotly.js", "chart.js"),
    isolate_styles=False,
)
_merge_lab = st.components.v2.component(
    "workbench_merge_lab",
    html=_text("merge_lab.html"),
    css=_text("merge_lab.css"),
    js=_text("plotly.js", "distances.js", "merge_lab.js"),
    isolate_styles=False,
)


def chart(figure: Figure, key: str) -> None:
    """Draw a figure; it can be taken home as PNG, SVG or HTML from its toolbar."""
    _chart(data={"figure": json.loads(figure.to_json()), "name": key, "plotly": PLOTLY}, key=key)


def merge_lab(pair: dict[str, Any], pair_id: str, merge: dict[str, Any], key: str) -> dict[str, Any]:
    """Sliders over the curves of a pair of checkpoints; the merge that they were last left at.

    pair: moments (one list of six sums per tensor), layers (of each tensor, or None), counted (the layer in
    whose sum it is, or None), importance (by layer, or None), change (by layer,
    |sft - start|), ceiling (a distance the axis must reach). merge: alpha, drop_rate, seed, rule,
    profile, points, towards to begin with.
    """
    data = {"pair": pair, "pair_id": pair_id, "merge": merge, "plotly": PLOTLY}
    plain = merge | {"points": merge["points"] if merge["profile"] == "points" else []}
    found = _merge_lab(data=data, default={"merge": plain}, key=key, on_merge_change=lambda: None)
    return dict(found.merge)
