"""What Streamlit does not have: charts that keep their zoom while data come in, sliders that answer while dragged.

Both are small components drawn with the plotly.js of the installed plotly package. Streamlit's own chart
becomes a new element, and loses its zoom, whenever its data change; its slider reports on release only.
Below each chart stands "open in notebook", which writes a recipe of `recipes` as a notebook.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import plotly
import streamlit as st
from plotly.graph_objects import Figure

from workbench import notebook, rundir
from workbench.charts import AT_HOME

HERE = Path(__file__).parent
LIBRARY = st.components.v1.declare_component("plotly", path=str(Path(plotly.__file__).parent / "package_data"))
PLOTLY = f"component/{LIBRARY.name}/plotly.min.js"


def _text(*names: str) -> str:
    return "\n".join((HERE / name).read_text(encoding="utf-8") for name in names)


CONFIG = f"const AT_HOME = {json.dumps(AT_HOME)};\n"
NOTEBOOK = '<div class="workbench-notebook"></div>'
_chart = st.components.v2.component(
    "workbench_chart",
    html=f'<div class="workbench-chart"></div>{NOTEBOOK}',
    css=_text("notebook.css"),
    js=CONFIG + _text("plotly.js", "notebook.js", "chart.js"),
    isolate_styles=False,
)
_offer = st.components.v2.component(
    "workbench_notebook",
    html=NOTEBOOK,
    css=_text("notebook.css"),
    js=_text("notebook.js", "offer.js"),
    isolate_styles=False,
)
_merge_lab = st.components.v2.component(
    "workbench_merge_lab",
    html=_text("merge_lab.html"),
    css=_text("merge_lab.css", "notebook.css"),
    js=CONFIG + _text("plotly.js", "notebook.js", "distances.js", "merge_lab.js"),
    isolate_styles=False,
)

_address = st.components.v2.component("workbench_address", js=_text("address.js"), isolate_styles=False)


def address(query: Mapping[str, str]) -> None:
    """Keep the chosen runs in the address of a page that was opened without any, and one history entry a page."""
    _address(data={"query": dict(query)}, key="address", height=0)


def chart(figure: Figure, key: str, recipe: Callable[..., Any], **parameters: Any) -> None:
    """Draw a figure; it can be taken home as PNG, SVG or HTML from its toolbar, and as a notebook.

    recipe: what draws the same figure there, from its parameters beside `home` and `db`.
    """
    data = {"figure": json.loads(figure.to_json()), "name": key, "plotly": PLOTLY}
    written = data | {"notebook": _said(key, recipe, parameters)}
    _chart(data=written, key=key, on_notebook_change=lambda: _write(key, recipe, parameters))


def open_in_notebook(key: str, recipe: Callable[..., Any], **parameters: Any) -> None:
    """The offer alone, for what is no chart."""
    _offer(
        data={"notebook": _said(key, recipe, parameters)},
        key=key,
        on_notebook_change=lambda: _write(key, recipe, parameters),
    )


def merge_lab(
    pair: dict[str, Any], lab_id: str, merge: dict[str, Any], key: str, recipe: Callable[..., Any]
) -> dict[str, Any]:
    """Sliders over the curves of a pair of checkpoints; the merge that they were last left at.

    pair: moments (one list of six sums per tensor), layers (of each tensor, or None), counted (the layer in
    whose sum it is, or None), importance (by layer, or None), change (by layer,
    |sft - start|), ceiling (a distance the axis must reach). merge: alpha, drop_rate, seed, rule,
    profile, points, towards to begin with. recipe: draws the curves, given lab_id and merge.
    """
    plain = merge | {"points": merge["points"] if merge["profile"] == "points" else []}
    shown = {"lab_id": lab_id, "merge": dict(st.session_state.get(key, {}).get("merge", plain))}
    found = _merge_lab(
        data={"pair": pair, "pair_id": lab_id, "merge": merge, "plotly": PLOTLY, "notebook": _said(key, recipe, shown)},
        default={"merge": plain},
        key=key,
        on_merge_change=lambda: None,
        on_notebook_change=lambda: _write(key, recipe, shown),
    )
    return dict(found.merge)


def _write(key: str, recipe: Callable[..., Any], parameters: Mapping[str, Any]) -> None:
    """Write the notebook that was asked for, and keep where it is."""
    home = rundir.home()
    ids = [parameters[name] for name in ("run_id", "lab_id", "analysis") if name in parameters]
    try:
        path = notebook.write(home, "-".join([recipe.__name__, *ids]), notebook.of_recipe(home, recipe, parameters))
    except (ValueError, OSError) as error:
        said = {"error": str(error)}
    else:
        near = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
        said = {"file": str(near), "address": notebook.address(path)}
    st.session_state[f"{key} notebook"] = recipe.__name__, dict(parameters), said


def _said(key: str, recipe: Callable[..., Any], parameters: Mapping[str, Any]) -> dict[str, Any] | None:
    """Where the notebook is that was written for just this, and whether a JupyterLab shows it."""
    *what, said = st.session_state.get(f"{key} notebook", (None, None, None))
    return said if what == [recipe.__name__, dict(parameters)] else None
