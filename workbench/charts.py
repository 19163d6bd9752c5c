"""Charts: a function from a frame to a Plotly figure, the same on a page and in a notebook.

Accuracies are fractions in the frames and per cent on the axes. Every point carries its interval and,
on hovering, its n. Colours: Okabe and Ito's, which colour-blind people can tell apart.
"""

from collections.abc import Sequence

import plotly.graph_objects as go
import plotly.io as pio
from pandas import DataFrame, concat
from plotly.subplots import make_subplots

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31")
SYMBOLS = {"base": "circle", "start": "star", "sft": "square", "merged": "diamond", "other": "square"}
GREY = "#8a8f98"
WINDOW = 9
"""Values in a running mean."""
BAR_COLOURS = {"done": "#009E73", "running": "#0072B2", "failed": "#D55E00", "stopped": GREY, "queued": GREY}

AT_HOME = {"displaylogo": False, "showSendToCloud": False, "plotlyServerURL": "", "topojsonURL": ""}
"""plotly.js offers to upload a chart, and knows addresses of its makers', unless it is told not to."""
for _renderer in ("plotly_mimetype", "notebook", "iframe", "browser"):  # a figure has no config of its own
    pio.renderers[_renderer].config |= AT_HOME


def checkpoint_labels(frame: DataFrame) -> list[str]:
    """Base, SFT 1, Merge 1, ... of a frame with `kind` and `iteration`."""
    words, plain = {"sft": "SFT", "merged": "Merge"}, {"base": "Base", "start": "Start", "other": "The other"}
    return [
        plain[kind] if kind in plain else f"{words[kind]} {iteration}"
        for kind, iteration in zip(frame["kind"], frame["iteration"], strict=True)
    ]


def run_names(called: DataFrame) -> dict[str, str]:
    """What to call runs (`arms.arms_frame`): arm and seed, and the id's end where these do not tell them apart."""
    words = (called["arm"] + " · seed " + called["seed"].astype(str)).set_axis(called["run_id"])
    alike = words.duplicated(False)
    return {run_id: f"{word} · {run_id[-4:]}" if alike[run_id] else word for run_id, word in words.items()}


def checkpoint_order(method: str, iterations: int, has_start: bool = False) -> list[str]:
    """Every checkpoint that a run will have, in order; a start of its own comes behind the base."""
    kinds = ["SFT", "Merge"] if method == "imm" else ["SFT"]
    return ["Base", *["Start"] * has_start, *(f"{kind} {t}" for t in range(1, iterations + 1) for kind in kinds)]


def accuracy_by_checkpoint(evals: DataFrame, order: Sequence[str], paper: DataFrame | None = None) -> go.Figure:
    """ID beside OOD, by checkpoint, with 95 % Wilson intervals; the base's accuracy as a dotted line.

    evals: columns kind, iteration, task, domain, accuracy, ci_low, ci_high, num_questions; paper: `paper_frame`.
    """
    figure = make_subplots(
        1,
        2,
        shared_yaxes=True,
        horizontal_spacing=0.03,
        subplot_titles=("In domain (ID)", "Out of domain (OOD)"),
    )
    frame = evals.assign(label=checkpoint_labels(evals))
    tasks = list(dict.fromkeys(zip(frame["domain"], frame["task"], strict=True)))
    for number, (domain, task) in enumerate(sorted(tasks)):
        rows, column = frame[frame["task"] == task], 1 if domain == "ID" else 2
        colour = COLOURS[number % len(COLOURS)]
        base = rows.loc[rows["kind"] == "base", "accuracy"]
        if len(base):
            line = [100 * base.iloc[0]] * len(order)
            figure.add_scatter(
                x=list(order), y=line, mode="lines", line={"color": colour, "dash": "dot", "width": 1},
                opacity=0.6, showlegend=False, hoverinfo="skip", row=1, col=column,
            )  # fmt: skip
        figure.add_scatter(
            x=rows["label"],
            y=100 * rows["accuracy"],
            error_y={
                "array": 100 * (rows["ci_high"] - rows["accuracy"]),
                "arrayminus": 100 * (rows["accuracy"] - rows["ci_low"]),
                "thickness": 1.4,
                "width": 4,
            },
            mode="lines+markers",
            name=task,
            line={"color": colour, "width": 2},
            marker={"size": 9, "symbol": [SYMBOLS[kind] for kind in rows["kind"]]},
            customdata=100 * rows[["ci_low", "ci_high"]].join(rows["num_questions"] / 100),
            hovertemplate=(
                f"{task}, %{{x}}<br><b>%{{y:.1f}} %</b>  (95 %: %{{customdata[0]:.1f}} to "
                "%{customdata[1]:.1f}, n = %{customdata[2]:d})<extra></extra>"
            ),
            row=1,
            col=column,
        )
        if paper is not None and len(theirs := paper[(paper["task"] == task) & paper["checkpoint"].isin(order)]):
            figure.add_scatter(
                x=theirs["checkpoint"], y=100 * theirs["accuracy"], mode="markers", name=f"{task} in the paper",
                marker={"size": 11, "symbol": "x-thin", "line": {"width": 2, "color": colour}},
                customdata=theirs["table"], row=1, col=column,
                hovertemplate=f"{task}, %{{x}}<br>the paper, table %{{customdata}}: <b>%{{y:.1f}} %</b><extra></extra>",
            )  # fmt: skip
    figure.update_xaxes(categoryorder="array", categoryarray=list(order), range=[-0.4, len(order) - 0.6])
    figure.update_yaxes(title_text="accuracy, %", col=1)
    figure.update_yaxes(rangemode="tozero")
    return finish(figure, height=380)


def phase_timeline(phases: DataFrame) -> go.Figure:
    """One bar per phase on a time axis; a running one ends now.

    phases: columns iteration, phase, status, started_at, ended_at (UTC), done, total, unit.
    """
    figure = go.Figure()
    start = phases["started_at"].min()
    for row in phases.itertuples():
        begin = (row.started_at - start).total_seconds()
        length = max((row.ended_at - row.started_at).total_seconds(), 0.5)
        lane = "Base" if row.iteration == 0 else f"Iteration {row.iteration}"
        colour = BAR_COLOURS[row.status]
        figure.add_bar(
            y=[lane], x=[length], base=[begin], orientation="h", name=row.status, showlegend=False,
            marker={"color": colour, "line": {"color": "rgba(128,128,128,0.4)", "width": 1}},
            text=row.phase, textposition="inside", insidetextanchor="middle", textangle=0,
            hovertemplate=f"{lane}: {row.phase}, {row.status}<br>{length:.0f} s<extra></extra>",
        )  # fmt: skip
    lanes = ["Base", *(f"Iteration {t}" for t in range(1, int(phases["iteration"].max()) + 1))]
    figure.update_yaxes(categoryorder="array", categoryarray=lanes[::-1])
    figure.update_xaxes(title_text="seconds since the start")
    figure.update_layout(barmode="overlay", bargap=0.25)
    return finish(figure, height=100 + 44 * len(lanes))


def by_step(metrics: DataFrame, title: str) -> go.Figure:
    """A metric over its steps, per iteration: each value faint, their running mean in front.

    metrics: columns iteration, step, value; of many steps in buckets (`store.metrics_frame`) also low, low_step,
    high, high_step, num_values, and then the faint line goes through the extremes.
    """
    figure = go.Figure()
    for iteration, rows in metrics.groupby("iteration"):
        colour = COLOURS[(iteration - 1) % len(COLOURS)]
        mean = rows["value"].rolling(WINDOW, min_periods=1, center=True).mean()
        shared = {"mode": "lines", "legendgroup": str(iteration)}
        faint = _extremes(rows) if "low" in rows else rows
        steps = WINDOW * (rows["num_values"].max() if "low" in rows else 1)
        figure.add_scatter(
            **shared, x=faint["step"], y=faint["value"], line={"color": colour, "width": 1}, opacity=0.25,
            showlegend=False, hoverinfo="skip",
        )  # fmt: skip
        figure.add_scatter(
            **shared, x=rows["step"], y=mean, name=f"iteration {iteration}", line={"color": colour, "width": 2.2},
            hovertemplate=f"iteration {iteration}, step %{{x}}: %{{y:.3g}} (mean of {steps})<extra></extra>",
        )  # fmt: skip
    figure.update_xaxes(title_text="optimizer step")
    figure.update_yaxes(title_text=title, rangemode="tozero")
    return finish(figure, height=280)


def _extremes(rows: DataFrame) -> DataFrame:
    """The lowest and the highest value of each bucket in the order of their steps; what is alone in its bucket once."""
    ends = [rows[[f"{end}_step", end]].set_axis(["step", "value"], axis=1) for end in ("low", "high")]
    return concat(ends).drop_duplicates().sort_values("step")


def kept_share(solutions: DataFrame) -> go.Figure:
    """Share of the sampled solutions that is correct, and kept, per iteration.

    solutions: columns iteration, num_solutions, correct, kept (shares).
    """
    figure = go.Figure()
    labels = [f"iteration {t}" for t in solutions["iteration"]]
    for name, colour in (("correct", COLOURS[5]), ("kept", COLOURS[0])):
        figure.add_bar(
            x=labels, y=100 * solutions[name], name=name, marker_color=colour,
            customdata=solutions["num_solutions"],
            text=[f"{100 * value:.0f} %" for value in solutions[name]], textposition="auto",
            hovertemplate=f"{name}: %{{y:.1f}} % of %{{customdata}} solutions<extra></extra>",
        )  # fmt: skip
    figure.update_yaxes(title_text="of sampled, %", range=[0, 100])
    return finish(figure, height=280)


def finish(figure: go.Figure, height: int) -> go.Figure:
    """What all charts share. `uirevision` keeps a zoom when the figure is drawn anew."""
    # By the container, plotly keeps room for a legend, however many lines it has: no title or label lies under it.
    below = {"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "x": 0}
    above = {"orientation": "h", "yref": "container", "y": 1, "yanchor": "top", "x": 1, "xanchor": "right"}
    figure.update_layout(
        height=height,
        margin={"l": 10, "r": 10, "t": 40, "b": 10},
        legend=below if height > 300 or figure.layout.annotations else above,  # titles of panels stand above
        hovermode="closest",
        uirevision="keep",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
    )
    figure.update_xaxes(showgrid=False, zeroline=False, automargin=True)
    figure.update_yaxes(gridcolor="rgba(128,128,128,0.2)", zeroline=False, automargin=True)
    return figure
