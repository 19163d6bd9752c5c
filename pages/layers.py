"""Which layers reason, and which layers moved: of a run's iterations as they land, or of any two checkpoints."""

from typing import Any

import pandas as pd
import streamlit as st

from workbench import (
    arms,
    charts,
    chosen_runs,
    comparisons,
    launch,
    layer_charts,
    recipes,
    rundir,
    screen,
    store,
    widgets,
)
from workbench.config import AnalyzeConfig
from workbench.rundir import RunDir

HOME = rundir.home()
DB = rundir.store_path(HOME)
OF_RUN = recipes.layers, recipes.importance_by_module, recipes.change_by_module
OF_TWO = recipes.layers_of_two, recipes.importance_by_module_of_two, recipes.change_by_module_of_two
AGAINST = {"start": "what the iteration started from", "base": "the base"}


def picture(
    importance: pd.DataFrame, change: pd.DataFrame, indices: pd.DataFrame, key: str, drawn: tuple, **about: Any
) -> None:
    """Verdict, both curves on one axis, then by module.

    drawn, about: the recipes of the three charts, and what they are of.
    """
    for row in indices[indices["text_set"] == "reasoning"].itertuples() if len(indices) else []:
        name = charts.checkpoint_labels(pd.DataFrame([{"kind": row.kind, "iteration": row.iteration}]))[0]
        (st.warning if row.is_sure and row.value < 0 else st.success if row.is_sure else st.info)(
            f"**{name}.** {row.verdict}"
        )
    if len(importance) or len(change):
        widgets.chart(layer_charts.together(importance, change), f"{key}-together", drawn[0], **about)
        st.caption(
            "Lines: importance, the sum over a layer's linear weights of |gradient × weight| (paper, Eq. 2-3), of the "
            "model that was trained; the band is 95 % over examples. Bars: how far the layer moved (Eq. 4). Both as "
            "shares of their sum over layers."
        )
    left, right = st.columns(2)
    if len(importance):
        with left:
            sets = importance["text_set"].unique().tolist()
            st.markdown("**Importance by module**")
            chosen = st.segmented_control("Texts", sets, default=sets[0], key=f"{key}-set") or sets[0]
            mine = importance[importance["text_set"] == chosen]
            figure = layer_charts.by_module(mine, "importance", "importance")
            widgets.chart(figure, f"{key}-importance-{chosen}", drawn[1], **about, text_set=chosen)
    if len(change):
        with right:
            st.markdown("**Weight change by module**")
            kinds = change["kind"].unique().tolist()
            kind = st.segmented_control("Checkpoint", kinds, default=kinds[0], key=f"{key}-kind") or kinds[0]
            mine = change[change["kind"] == kind]
            figure = layer_charts.by_module(mine, "change", "change (Frobenius)")
            widgets.chart(figure, f"{key}-change-{kind}", drawn[2], **about, kind=kind)
            apart = mine[mine["layer"] < 0]
            st.dataframe(
                pd.DataFrame(
                    {
                        "in no layer's sum": apart["module"],
                        "change": apart["change"].round(4),
                        "% of the norm": (100 * apart["change"] / apart["norm"]).round(2),
                    }
                ),
                hide_index=True,
            )


def view(run: RunDir, against: str, others: list[str]) -> None:
    """Everything of a run, once."""
    importance, indices = store.importance_frame(DB, run.run_id), store.superficiality_frame(DB, run.run_id)
    change = store.change_frame(DB, [run.run_id, *others])
    change, indices = change[change["compared_to"] == against], indices[indices["compared_to"] == against]
    own = change[change["run_id"] == run.run_id]
    runs = store.runs_frame(DB).set_index("run_id")
    if own.empty:
        st.info("No iteration has been analysed yet: phase *analyze* comes at the end of each, if it is on.")
        return
    done = own["iteration"].unique().tolist()
    iteration = st.segmented_control("Iteration", done, default=done[-1], key="iteration") or done[-1]
    measured = iteration if against == "start" else 1
    picture(
        importance[importance["iteration"] == measured],
        own[own["iteration"] == iteration],
        indices[indices["iteration"] == iteration],
        "run", OF_RUN, run_id=run.run_id, iteration=iteration, against=against,
    )  # fmt: skip
    st.subheader("Over the iterations")
    order = charts.checkpoint_order(runs.loc[run.run_id, "method"], runs.loc[run.run_id, "iterations"])
    about = indices[indices["text_set"] == "reasoning"]
    figure = layer_charts.index_by_checkpoint(about, store.gains_frame(DB, run.run_id), order)
    widgets.chart(figure, "index", recipes.superficiality, run_id=run.run_id, against=against)
    st.caption(
        "Left: rank correlation of importance (reasoning) and weight change over layers; -1 is superficial, +1 is "
        "not. Its 95 % interval draws examples and layers anew. Right: gain over the base on the same questions, ID "
        "minus the mean of the OOD tasks, with its 95 % interval. ■ SFT, ◆ merged."
    )
    relative = st.toggle("In per cent of the weights' norm", key="relative")
    shown = [run.run_id, *others]
    names = charts.run_names(arms.arms_frame(DB, shown)) if others else {run.run_id: ""}
    figure = layer_charts.overlaid(change, names, relative)
    widgets.chart(
        figure, f"overlaid-{relative}", recipes.change_overlaid, run_ids=shown, against=against, relative=relative
    )


def of_run() -> None:
    """A run's layers, live."""
    run = chosen_runs.pick_run(HOME)
    if run is None:
        return
    against = st.sidebar.radio("Change is counted from", list(AGAINST), format_func=AGAINST.get)
    known = [other.run_id for other in rundir.all_runs(HOME) if other.run_id != run.run_id]
    others = st.sidebar.multiselect("Lay other runs over it", known[::-1], help="As vanilla, or real-data SFT.")
    alive = launch.observed_status(run)[0] in launch.ACTIVE
    screen.live(lambda: view(run, against, others), 3 if alive else None)


def ask() -> comparisons.Comparison | None:
    """The analysis of two directories that was asked for last, or is picked from the earlier ones."""
    with st.form("compare"):
        left, right = st.columns(2)
        model = left.text_input("Model", placeholder="directory")
        other = right.text_input("Compared with it", placeholder="directory of the same shape, or a LoRA adapter")
        task = left.text_input("Reasoning set", placeholder="a task with worked solutions, as gsm8k")
        text = right.text_input("Plain text", placeholder="a file or hub text set; empty takes the shipped text")
        number = left.number_input("Examples of each", 2, 10_000, AnalyzeConfig().num_examples)
        trusted = st.toggle(screen.TRUST_LABEL, help=screen.TRUST_HELP)
        named = {"Model": model, "Compared with it": other, "Reasoning set": task, "Plain text": text}
        if st.form_submit_button("Analyse", type="primary") and model and screen.places(**named):
            source = launch.task_sources([task], HOME)[0] if task else None
            place = screen.attempt(
                lambda: comparisons.ask(
                    HOME,
                    comparisons.analysis_job(
                        model,
                        other or None,
                        source,
                        text or None,
                        AnalyzeConfig(num_examples=number),
                        trust_remote_code=trusted,
                    ),
                )
            )
            if place:
                st.session_state["comparison"] = place.comparison_id
    earlier = comparisons.all_comparisons(HOME)
    if not earlier:
        return None
    ids = [place.comparison_id for place in earlier]
    wanted = st.session_state.get("comparison", ids[0])
    labels = comparisons.labels(earlier)
    chosen = st.selectbox("Analysis", ids, ids.index(wanted) if wanted in ids else 0, format_func=labels.get)
    return comparisons.find(HOME, chosen)


def result(place: comparisons.Comparison) -> None:
    """What came out, or how far it is."""
    status = comparisons.observed(place)
    if status["error"]:
        st.error(screen.plain(status["error"]))
    elif not status["done"]:
        st.progress(status["share"], status["text"])
    else:
        found = comparisons.frames(place)
        change, indices = (
            found[table][found[table]["compared_to"] == "base"] for table in ("weight_change", "superficiality")
        )
        picture(found["importance"], change, indices, place.comparison_id, OF_TWO, analysis=place.comparison_id)


st.title("Layers")
if st.sidebar.toggle("Any two checkpoints", help="Two model directories instead of a run's iterations."):
    place = ask()
    if place is not None:
        running = not place.result.exists()
        screen.live(lambda: result(place), 1 if running else None)
else:
    of_run()
