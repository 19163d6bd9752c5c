"""Charts of evaluations: runs side by side, pass@k, diversity. Like `charts`, from a frame to a Plotly figure."""

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go
from pandas import DataFrame
from plotly.subplots import make_subplots

from workbench.charts import COLOURS, SYMBOLS, checkpoint_labels, finish

APART = 0.04
"""Between two runs at one iteration, so that their intervals can be told apart."""
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")


def runs_side_by_side(means: DataFrame, names: Mapping[str, str]) -> go.Figure:
    """ID beside mean OOD accuracy by iteration, a line for each run; merged checkpoints where a run merges.

    means: `evals.domain_means`; names: run_id -> what the legend says.
    """
    figure = make_subplots(
        1, 2, shared_yaxes=True, horizontal_spacing=0.03,
        subplot_titles=("In domain (ID)", "Out of domain (OOD), mean over tasks"),
    )  # fmt: skip
    last = means.sort_values(["iteration", "kind"], key=lambda c: c == "merged" if c.name == "kind" else c)
    last = last.groupby(["run_id", "iteration", "domain"], sort=False).tail(1)
    for number, (run_id, name) in enumerate(names.items()):
        for column, domain in ((1, "ID"), (2, "OOD")):
            rows = last[(last["run_id"] == run_id) & (last["domain"] == domain)].sort_values("iteration")
            figure.add_scatter(
                x=rows["iteration"] + APART * (number - (len(names) - 1) / 2),
                y=100 * rows["accuracy"],
                error_y=_whiskers(rows, "accuracy"),
                mode="lines+markers",
                name=name,
                legendgroup=run_id,
                showlegend=column == 1,
                line={"color": COLOURS[number % len(COLOURS)], "width": 2},
                marker={"size": 9, "symbol": [SYMBOLS[kind] for kind in rows["kind"]]},
                customdata=list(
                    zip(checkpoint_labels(rows), 100 * rows["ci_low"], 100 * rows["ci_high"], rows["n"], strict=True)
                ),
                hovertemplate=f"{name}, %{{customdata[0]}}<br><b>%{{y:.1f}} %</b>  (95 %: %{{customdata[1]:.1f}} to "
                "%{customdata[2]:.1f}, n = %{customdata[3]})<extra></extra>",
                row=1,
                col=column,
            )
    figure.update_xaxes(title_text="iteration", dtick=1)
    figure.update_yaxes(title_text="accuracy, %", col=1)
    figure.update_yaxes(rangemode="tozero")
    return finish(figure, height=400)


def pooled_values(pooled: DataFrame) -> DataFrame:
    """The values behind `runs_side_by_side` in per cent, with n, seeds and interval.

    pooled: `arms.seeds_pooled`.
    """
    return DataFrame(
        {
            "method": pooled["run_id"],
            "checkpoint": checkpoint_labels(pooled),
            "domain": pooled["domain"],
            "accuracy, %": (100 * pooled["accuracy"]).round(1),
            "95 % from": (100 * pooled["ci_low"]).round(1),
            "to": (100 * pooled["ci_high"]).round(1),
            "seeds": pooled["num_seeds"],
            "answers": pooled["n"],
        }
    )


def pass_at_k(passes: DataFrame, names: Mapping[str, str]) -> go.Figure:
    """pass@k against k, a line for each checkpoint (figure 8 of the paper), with bootstrap intervals as bands.

    passes: rows of `evals.pass_frame` of one task; names: run_id -> what the legend says.
    """
    figure = go.Figure()
    runs = list(names)
    frame = passes.assign(label=checkpoint_labels(passes))
    for number, (key, rows) in enumerate(frame.groupby(["run_id", "label"], sort=False)):
        run_id, label = key
        name = label if len(runs) == 1 else f"{names[run_id]}: {label}"
        colour = COLOURS[number % len(COLOURS)]
        figure.add_scatter(
            x=[*rows["k"], *rows["k"][::-1]], y=[*(100 * rows["ci_high"]), *(100 * rows["ci_low"][::-1])],
            fill="toself", fillcolor=colour, opacity=0.12, line={"width": 0}, hoverinfo="skip",
            legendgroup=name, showlegend=False,
        )  # fmt: skip
        figure.add_scatter(
            x=rows["k"], y=100 * rows["pass_at_k"], mode="lines+markers", name=name, legendgroup=name,
            line={"color": colour, "width": 2, "dash": DASHES[runs.index(run_id) % len(DASHES)]},
            marker={"size": 8, "symbol": [SYMBOLS[kind] for kind in rows["kind"]]},
            customdata=list(zip(100 * rows["ci_low"], 100 * rows["ci_high"], rows["num_questions"], rows["num_samples"],
                                strict=True)),
            hovertemplate=f"{name}, pass@%{{x}}<br><b>%{{y:.1f}} %</b>  (95 %: %{{customdata[0]:.1f}} to "
            "%{customdata[1]:.1f}, n = %{customdata[2]}, M = %{customdata[3]})<extra></extra>",
        )  # fmt: skip
    figure.update_xaxes(title_text="k", type="log", tickvals=sorted(set(passes["k"])))
    figure.update_yaxes(title_text="pass@k, %", rangemode="tozero")
    return finish(figure, height=380)


DIVERSITY_WORDS = {
    "distinct_solutions": "distinct solutions, share",
    "distinct_2": "distinct word pairs, share",
    "answer_entropy": "answer entropy, bits",
    "self_bleu": "self-BLEU",
    "solution_tokens": "length, tokens",
}


def diversity(frame: DataFrame) -> go.Figure:
    """The collapse monitor: each measure of diversity by iteration, on an axis of its own.

    frame: `evals.diversity_frame`.
    """
    names = [name for name in DIVERSITY_WORDS if name in set(frame["name"])]
    figure = make_subplots(1, len(names), subplot_titles=[DIVERSITY_WORDS[name] for name in names])
    for column, name in enumerate(names, start=1):
        rows = frame[frame["name"] == name]
        figure.add_scatter(
            x=rows["iteration"], y=rows["value"], mode="lines+markers", line={"color": COLOURS[0], "width": 2},
            marker={"size": 8}, showlegend=False, row=1, col=column,
            hovertemplate="iteration %{x}: %{y:.3g}<extra></extra>",
        )  # fmt: skip
    figure.update_xaxes(dtick=1, title_text="iteration")
    figure.update_yaxes(rangemode="tozero")
    return finish(figure, height=260)


def differences(table: DataFrame) -> go.Figure:
    """The differences between two checkpoints with their intervals, a row for each task.

    table: accuracies of `evals.compared`.
    """
    rows = table[::-1]
    figure = go.Figure()
    figure.add_scatter(
        x=100 * rows["difference"], y=rows["scope"], mode="markers", error_x=_whiskers(rows, "difference"),
        marker={"size": 10, "color": COLOURS[0], "symbol": "diamond"}, showlegend=False,
        customdata=list(zip(100 * rows["ci_low"], 100 * rows["ci_high"], rows["num_questions"], strict=True)),
        hovertemplate="%{y}: <b>%{x:+.1f}</b> points (95 %: %{customdata[0]:+.1f} to %{customdata[1]:+.1f}, "
        "n = %{customdata[2]})<extra></extra>",
    )  # fmt: skip
    figure.add_vline(x=0, line={"width": 1, "dash": "dot", "color": "#8a8f98"})
    figure.update_xaxes(title_text="change in accuracy, percentage points")
    return finish(figure, height=120 + 32 * len(rows))


def _whiskers(rows: DataFrame, column: str) -> dict[str, Sequence[float] | float]:
    """95 % intervals as error bars, in per cent."""
    return {
        "array": 100 * (rows["ci_high"] - rows[column]),
        "arrayminus": 100 * (rows[column] - rows["ci_low"]),
        "thickness": 1.4,
        "width": 4,
    }
