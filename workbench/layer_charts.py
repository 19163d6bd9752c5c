"""Charts of the layers: importance against weight change. Frames of the store in, Plotly figures out."""

from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go
from pandas import DataFrame
from plotly.subplots import make_subplots

from workbench.charts import COLOURS, GREY, SYMBOLS, checkpoint_labels, finish
from workbench.core.layers import WHOLE, in_order
from workbench.core.statistics import gap

SETS = {"reasoning": (COLOURS[0], "0,114,178", "solid"), "plain": (GREY, "138,143,152", "dash")}
KINDS = {"sft": COLOURS[1], "merged": COLOURS[2], "other": COLOURS[1]}
DASHES = ("solid", "dot", "dash", "dashdot", "longdash", "longdashdot")


def together(importance: DataFrame, change: DataFrame) -> go.Figure:
    """Where the layers matter over where they moved, on one axis: each layer's share of the sum over layers.

    importance, change: rows of the store's tables; of change, those compared to one checkpoint.
    The band is the 95 % bootstrap interval over examples.
    """
    figure = go.Figure()
    for kind, rows in _whole(change).groupby("kind", sort=False):
        label = checkpoint_labels(rows)[0]
        figure.add_bar(
            x=rows["layer"], y=100 * rows["change"] / rows["change"].sum(), name=f"weight change, {label}",
            marker={"color": KINDS[kind], "opacity": 0.55}, customdata=rows["change"],
            hovertemplate=f"layer %{{x}}, {label}: %{{y:.1f}} % of the change (%{{customdata:.4g}})<extra></extra>",
        )  # fmt: skip
    for text_set, rows in _whole(importance).groupby("text_set", sort=False):
        colour, rgb, dash = SETS[text_set]
        _band(figure, rows["layer"], 100 * rows["share_low"], 100 * rows["share_high"], rgb)
        figure.add_scatter(
            x=rows["layer"], y=100 * rows["share"], mode="lines+markers", name=f"importance, {text_set}",
            line={"color": colour, "width": 2.5, "dash": dash},
            customdata=(100 * rows[["share_low", "share_high"]]).join(rows[["importance", "num_examples"]]),
            hovertemplate=f"layer %{{x}}, {text_set}: <b>%{{y:.1f}} %</b> of the importance (95 %: "
            "%{customdata[0]:.1f} to %{customdata[1]:.1f}; sum %{customdata[2]:.4g}, "
            "n = %{customdata[3]:d} examples)<extra></extra>",
        )  # fmt: skip
    _by_layer(figure, "share of the sum over layers, %")
    figure.update_layout(barmode="group", bargap=0.35)
    return finish(figure, height=400)


def by_module(frame: DataFrame, value: str, title: str) -> go.Figure:
    """One line per module (q, k, v, o, gate, up, down) over the layers; a band where the frame has intervals."""
    figure = go.Figure()
    modules = [module for module in in_order(frame["module"].unique().tolist()) if module != WHOLE]
    inside = frame[frame["layer"] >= 0]
    for number, module in enumerate(modules):
        rows, colour = inside[inside["module"] == module], COLOURS[number % len(COLOURS)]
        if "ci_low" in rows:
            rgb = ",".join(str(int(colour[at : at + 2], 16)) for at in (1, 3, 5))
            _band(figure, rows["layer"], rows["ci_low"], rows["ci_high"], rgb, module, opacity=0.06)
        figure.add_scatter(
            x=rows["layer"], y=rows[value], mode="lines+markers", name=module, legendgroup=module,
            line={"color": colour, "width": 2, "dash": DASHES[number // len(COLOURS) % len(DASHES)]},
            hovertemplate=f"layer %{{x}}, {module}: %{{y:.4g}}<extra></extra>",
        )  # fmt: skip
    _by_layer(figure, title)
    return finish(figure, height=360).update_layout(legend={"y": -0.3})


def overlaid(change: DataFrame, names: dict[str, str], relative: bool = False) -> go.Figure:
    """Weight change over the layers, one line per checkpoint, of one or several runs (paper, figure 9).

    change: columns run_id, iteration, kind, layer, module, change, norm; names: what to call each run.
    """
    figure = go.Figure()
    rows = _whole(change)
    for number, (run_id, mine) in enumerate(rows.groupby("run_id", sort=False)):
        for (kind, iteration), part in mine.groupby(["kind", "iteration"], sort=False):
            label = " · ".join(filter(None, [names[run_id], checkpoint_labels(part)[0]]))
            value = 100 * part["change"] / part["norm"] if relative else part["change"]
            figure.add_scatter(
                x=part["layer"], y=value, mode="lines+markers", name=label,
                line={"color": COLOURS[(iteration - 1) % len(COLOURS)], "dash": DASHES[number % len(DASHES)],
                      "width": 2},
                marker={"symbol": SYMBOLS[kind], "size": 8},
                hovertemplate=f"{label}, layer %{{x}}: %{{y:.4g}}<extra></extra>",
            )  # fmt: skip
    _by_layer(figure, "change, % of the weights' norm" if relative else "weight change (Frobenius, Eq. 4)")
    return finish(figure, height=380)


def index_by_checkpoint(indices: DataFrame, gains: DataFrame, order: Sequence[str]) -> go.Figure:
    """The superficiality index by checkpoint, beside how much more ID gained than OOD.

    indices: columns iteration, kind, value, ci_low, ci_high, num_layers, num_examples; gains: `store.gains_frame`.
    """
    figure = make_subplots(
        1, 2, horizontal_spacing=0.09, subplot_titles=("Superficiality index", "ID gain minus OOD gain, points")
    )
    index = indices.assign(label=checkpoint_labels(indices)) if len(indices) else indices.assign(label=[])
    counts = [f"{r.num_layers} layers, {r.num_examples:.0f} examples" for r in index.itertuples()]
    _points(figure, index, "value", counts, 1, column=1)
    found = []
    for (iteration, kind), rows in gains.groupby(["iteration", "kind"], sort=False):
        value = gap(list(zip(rows["domain"] == "ID", rows["gain"], rows["variance"], rows["num_questions"],
                             strict=True)))  # fmt: skip
        if value:
            found.append((iteration, kind, *value, f"{rows['num_questions'].sum()} questions"))
    gaps = DataFrame(found, columns=["iteration", "kind", "value", "ci_low", "ci_high", "n"])
    gaps["label"] = checkpoint_labels(gaps)
    _points(figure, gaps, "value", gaps["n"].tolist(), 100, column=2)
    places = [label for label in order if label not in ("Base", "Start")]
    figure.update_xaxes(categoryorder="array", categoryarray=places, range=[-0.5, len(places) - 0.5])
    figure.update_yaxes(range=[-1.08, 1.08], col=1)
    figure.add_hline(y=0, line={"color": GREY, "width": 1, "dash": "dot"})
    return finish(figure, height=330)


def _points(figure: go.Figure, frame: DataFrame, value: str, counts: Sequence[str], scale: float, column: int) -> None:
    """Values with their intervals, by checkpoint."""
    for kind, rows in frame.assign(n=list(counts)).groupby("kind", sort=False):
        low, high = (pd.to_numeric(rows[name]) for name in ("ci_low", "ci_high"))
        middle = pd.to_numeric(rows[value])
        figure.add_scatter(
            x=rows["label"], y=scale * middle, mode="markers+lines", showlegend=False,
            error_y={"array": scale * (high - middle), "arrayminus": scale * (middle - low), "thickness": 1.4},
            line={"color": KINDS[kind], "width": 1.5}, marker={"size": 10, "symbol": SYMBOLS[kind]},
            customdata=list(zip(scale * low, scale * high, rows["n"], strict=True)),
            hovertemplate="%{x}: <b>%{y:+.2f}</b> (95 %: %{customdata[0]:+.2f} to %{customdata[1]:+.2f}, "
            "%{customdata[2]})<extra></extra>", row=1, col=column,
        )  # fmt: skip


def _whole(frame: DataFrame) -> DataFrame:
    return frame[frame["module"] == WHOLE]


def _band(figure: go.Figure, x, low, high, rgb: str, group: str | None = None, opacity: float = 0.15) -> None:
    figure.add_scatter(
        x=[*x, *x[::-1]], y=[*high, *low[::-1]], mode="lines", fill="toself", fillcolor=f"rgba({rgb},{opacity})",
        line={"width": 0},
        showlegend=False, hoverinfo="skip", legendgroup=group,
    )  # fmt: skip


def _by_layer(figure: go.Figure, title: str) -> None:
    figure.update_xaxes(title_text="layer, from the first", tickformat="d")
    figure.update_yaxes(title_text=title, rangemode="tozero")
