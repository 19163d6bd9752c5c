"""Any frame as a figure, for page SQL: frame -> figure, the same in a notebook."""

from typing import Any

import plotly.graph_objects as go
from pandas import DataFrame
from pandas.api.types import is_datetime64_any_dtype, is_integer_dtype, is_numeric_dtype

from workbench.charts import COLOURS, GREY, finish


def drawn(frame: DataFrame, kind: str, x: str, y: str, colour: str | None = None) -> go.Figure:
    """Any frame as lines, bars or points: y over x, a colour for each value of `colour`.

    Columns ci_low and ci_high around y are drawn as intervals.
    """
    figure = go.Figure()
    groups = [(None, frame)] if colour is None else list(frame.groupby(frame[colour].astype(str), sort=False))
    as_it_is = is_numeric_dtype(frame[x]) or is_datetime64_any_dtype(frame[x])
    has_bars = {"ci_low", "ci_high"} <= {*frame.columns} - {x, y} and (frame["ci_low"] <= frame[y]).all()
    for number, (name, rows) in enumerate(groups):
        tone = COLOURS[number % len(COLOURS)]
        shown = ["" if name is None else f"{name}, "] * len(rows)
        bars = {"color": GREY if kind == "bar" else tone, "thickness": 1, "width": 4}
        if has_bars:
            bars |= {"array": rows["ci_high"] - rows[y], "arrayminus": rows[y] - rows["ci_low"], "symmetric": False}
        common: dict[str, Any] = {
            "x": rows[x] if as_it_is else rows[x].astype(str), "y": rows[y], "name": str(name), "customdata": shown,
            "hovertemplate": "%{customdata}%{x}: <b>%{y}</b><extra></extra>", "error_y": bars if has_bars else None,
        }  # fmt: skip
        if kind == "bar":
            figure.add_bar(**common, marker_color=tone)
        else:
            mode = "lines+markers" if kind == "line" else "markers"
            figure.add_scatter(**common, mode=mode, line={"color": tone, "width": 2}, marker={"color": tone, "size": 7})
    figure.update_layout(showlegend=colour is not None, barmode="group", legend_title_text=colour)
    whole = is_integer_dtype(frame[x]) and frame[x].max() - frame[x].min() <= 20
    figure.update_xaxes(title=x, showgrid=False, dtick=1 if whole else None)
    figure.update_yaxes(title=y)
    return finish(figure, height=430)
