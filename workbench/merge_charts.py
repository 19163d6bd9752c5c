"""Charts of the merge lab: frames in (`merges.points`, `merges.comparison`), Plotly figures out."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import plotly.graph_objects as go
from pandas import DataFrame, Series
from plotly.subplots import make_subplots

from workbench.charts import COLOURS, GREY, finish
from workbench.core.distances import from_base, from_sft
from workbench.core.profiles import along_depth, by_weight
from workbench.merges import BASE_ID, SFT_ID, pareto

DEEP = ((0, "#4b2a78"), (0.5, "#2b6a99"), (1, "#1b8a6b"))
"""Low to high; dark enough throughout for white figures."""


def surface(table: DataFrame) -> go.Figure:
    """ID and OOD accuracy over alpha x p. Only measured points are coloured; the hatched ground is unknown.

    table: `merges.points`. Several seeds at one place are one mark: their mean, and on hovering the range.
    """
    figure = make_subplots(
        1, 2, shared_yaxes=True, horizontal_spacing=0.04, subplot_titles=("In domain (ID)", "Out of domain (OOD)")
    )
    plain = table[(table["point_id"] != SFT_ID) | (table["drop_rate"] == 0)]
    for column, key in ((1, "id"), (2, "ood")):
        known = plain.dropna(subset=[key])
        figure.add_bar(
            x=[0.5], y=[1.04], width=[1.06], base=[-0.02], showlegend=False, hoverinfo="skip", row=1, col=column,
            marker={"color": "rgba(0,0,0,0)", "line": {"width": 0},
                    "pattern": {"shape": "/", "size": 10, "solidity": 0.08, "fgcolor": GREY}},
        )  # fmt: skip
        places = known.groupby(["alpha", "drop_rate"])
        mean = places[key].mean()
        detail = [_detail(group, key) for _, group in places]
        figure.add_scatter(
            x=[alpha for alpha, _ in mean.index], y=[p for _, p in mean.index], mode="markers+text",
            text=[_mark(group[key]) for _, group in places], textfont={"size": 11, "color": "white"},
            marker={"size": 32, "symbol": "square", "color": list(100 * mean), "coloraxis": f"coloraxis{column}",
                    "line": {"color": "white", "width": 1}},
            customdata=detail, hovertemplate="%{customdata}<extra></extra>", showlegend=False, row=1, col=column,
        )  # fmt: skip
    bar = {"thickness": 10, "len": 0.9}
    figure.update_layout(
        barmode="overlay",
        coloraxis1={"colorscale": DEEP, "colorbar": bar | {"x": 0.475}},
        coloraxis2={"colorscale": DEEP, "colorbar": bar | {"x": 1.0}},
    )
    figure.update_xaxes(title_text="alpha (1 is the base)", range=[-0.05, 1.05])
    figure.update_yaxes(title_text="p, share dropped", range=[-0.05, 1.05], col=1)
    return finish(figure, height=400)


def _mark(values: Series) -> str:
    """Mean accuracy in per cent; of several seeds with their standard deviation below."""
    spread = f"<br>±{100 * values.std():.1f}" if len(values) > 1 else ""
    return f"{100 * values.mean():.0f}{spread}"


def _detail(group: DataFrame, key: str) -> str:
    """What hovering over a place tells."""
    lines = [f"alpha {group['alpha'].iloc[0]:g}, p {group['drop_rate'].iloc[0]:g}"]
    for row in group.to_dict("records"):
        lines.append(
            f"seed {row['seed']}: <b>{100 * row[key]:.1f} %</b> (95 %: {100 * row[f'{key}_low']:.1f} to "
            f"{100 * row[f'{key}_high']:.1f}, n = {row[f'n_{key}']})"
        )
    return "<br>".join(lines[:9])


def front(table: DataFrame) -> go.Figure:
    """ID against OOD accuracy of every measured merge, with intervals; a line along the Pareto front."""
    known, best = table.dropna(subset=["id", "ood"]), pareto(table)
    figure = go.Figure()
    figure.add_scatter(
        x=100 * best["ood"], y=100 * best["id"], mode="lines", name="Pareto front", hoverinfo="skip",
        line={"color": COLOURS[2], "width": 2, "shape": "vh", "dash": "dot"},
    )  # fmt: skip
    ends = {BASE_ID: ("Base", COLOURS[0], "circle"), SFT_ID: ("SFT", COLOURS[1], "square")}
    groups = [(known[known["point_id"] == name], *look) for name, look in ends.items()]
    groups.append((known[~known["point_id"].isin(list(ends))], "merges", COLOURS[3], "diamond"))
    for rows, name, colour, symbol in groups:
        if rows.empty:
            continue
        bars = {
            axis: {"type": "data", "array": 100 * (rows[f"{key}_high"] - rows[key]),
                   "arrayminus": 100 * (rows[key] - rows[f"{key}_low"]), "thickness": 1, "width": 3}
            for axis, key in (("x", "ood"), ("y", "id"))
        }  # fmt: skip
        figure.add_scatter(
            x=100 * rows["ood"], y=100 * rows["id"], mode="markers", name=name, error_x=bars["x"], error_y=bars["y"],
            marker={"color": colour, "size": 10, "symbol": symbol}, opacity=0.85,
            customdata=rows[["label", "n_id", "n_ood"]],
            hovertemplate="%{customdata[0]}<br>ID <b>%{y:.1f} %</b> (n = %{customdata[1]}), "
            "OOD <b>%{x:.1f} %</b> (n = %{customdata[2]})<extra></extra>",
        )  # fmt: skip
    figure.update_xaxes(title_text="OOD accuracy, %")
    figure.update_yaxes(title_text="ID accuracy, %")
    return finish(figure, height=400)


def differences(table: DataFrame, labels: Mapping[str, str]) -> go.Figure:
    """Paired differences to base and to sft with their intervals, ID beside OOD.

    table: `merges.comparison`.
    """
    figure = make_subplots(1, 2, shared_yaxes=True, horizontal_spacing=0.04, subplot_titles=("ID", "OOD"))
    for column, domain in ((1, "ID"), (2, "OOD")):
        for against, colour in (("base", COLOURS[0]), ("sft", COLOURS[1])):
            rows = table[(table["domain"] == domain) & (table["against"] == against)]
            figure.add_scatter(
                x=100 * rows["difference"], y=[labels[name] for name in rows["point_id"]], mode="markers",
                name=f"against {against}", legendgroup=against, showlegend=column == 1,
                marker={"color": colour, "size": 10},
                error_x={"type": "data", "array": 100 * (rows["ci_high"] - rows["difference"]),
                         "arrayminus": 100 * (rows["difference"] - rows["ci_low"])},
                customdata=rows[["num_questions", "p_holm"]],
                hovertemplate=f"{domain} against {against}: <b>%{{x:+.1f}}</b> points, n = %{{customdata[0]}}, "
                "p = %{customdata[1]:.3g} (Holm)<extra></extra>",
                row=1, col=column,
            )  # fmt: skip
        figure.add_vline(x=0, line={"color": GREY, "width": 1}, row=1, col=column)
    figure.update_xaxes(title_text="difference, points")
    return finish(figure, height=180 + 50 * table["point_id"].nunique())


def distances(pair: Mapping[str, Any], merge: Mapping[str, Any]) -> go.Figure:
    """How far a merge is expected to lie from base and from sft, by layer, with two standard deviations over seeds.

    What `widgets/merge_lab.js` draws while its sliders are dragged. pair, merge: as `widgets.merge_lab` has them.
    """
    figure, change = go.Figure(), pair["change"]
    alphas = layer_alphas(pair, merge)
    by_tensor = [merge["alpha"] if layer is None else alphas[layer] for layer in pair["layers"]]
    counted = pair.get("counted") or pair["layers"]
    places = np.array([len(change) if place is None else place for place in counted], dtype=int)
    highest = [*change, pair["ceiling"]]
    for name, formula, colour, dash in (("the base", from_base, 0, "solid"), ("sft", from_sft, 1, "dash")):
        mean, spread = formula(pair["moments"], by_tensor, merge["drop_rate"], merge["towards"])
        mean, variance = (np.bincount(places, value, len(change) + 1)[: len(change)] for value in (mean, spread**2))
        around = 2 * np.sqrt(variance)
        band = {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip", "showlegend": False}
        figure.add_scatter(y=np.maximum(0.0, mean - around), **band)
        figure.add_scatter(y=mean + around, fill="tonexty", fillcolor=f"{COLOURS[colour]}33", **band)
        figure.add_scatter(
            y=mean, mode="lines+markers", name=f"merge from {name}",
            line={"color": COLOURS[colour], "width": 2, "dash": dash},
            customdata=list(zip(around, alphas, strict=True)),
            hovertemplate=f"layer %{{x}}, from {name}: <b>%{{y:.4g}}</b> ± %{{customdata[0]:.2g}} over seeds, "
            "alpha %{customdata[1]:.2f}<extra></extra>",
        )  # fmt: skip
        highest += list(mean) if name == "the base" else []
    figure.add_scatter(y=change, mode="lines", name="sft from start", line={"color": GREY, "width": 1.5, "dash": "dot"})
    figure.update_traces(x=list(range(len(change))))
    figure.update_xaxes(title_text="layer", tickformat="d")
    figure.update_yaxes(title_text="distance (sum of Frobenius norms)", range=[0, 1.08 * max(highest)])
    return finish(figure, height=320)


def layer_alphas(pair: Mapping[str, Any], merge: Mapping[str, Any]) -> tuple[float, ...]:
    """The alpha of each layer under a merge's profile."""
    if merge["profile"] == "points":
        return along_depth(merge["points"], len(pair["change"]))
    if merge["profile"] == "inverse_change":
        return by_weight(merge["alpha"], [1 / max(moved, 1e-12) for moved in pair["change"]])
    if merge["profile"] == "importance" and pair["importance"]:
        return by_weight(merge["alpha"], pair["importance"])
    return (merge["alpha"],) * len(pair["change"])
