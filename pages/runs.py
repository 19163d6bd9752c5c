"""All runs of this home, newest first; on an empty store, the pocket run at one click."""

import pandas as pd
import streamlit as st

from workbench import chosen_runs, rundir, screen, store

HOME = rundir.home()
DB = rundir.store_path(HOME)


def start_pocket_run() -> None:
    """Launch the pocket preset and go to its live page."""
    screen.launch_and_watch(screen.preset_config("pocket"), HOME)


def welcome() -> None:
    """What an empty store shows."""
    st.title("Does it learn to reason, or to repeat itself?")
    st.markdown(
        "A language model samples solutions to a task, is fine-tuned on the correct ones, and is merged back "
        "towards its base. This workbench runs that loop, measures every checkpoint on the trained task (**ID**) "
        "and on others (**OOD**), and shows where the two part."
    )
    left, middle, right = st.columns(3)
    left.metric("Model", "4.7 M parameters", "the pocket model, in this repository", delta_color="off")
    middle.metric("Needs", "two CPU cores", "no GPU, no account, no download", delta_color="off")
    right.metric("Takes", "minutes", "three iterations, four tasks of 500 questions", delta_color="off")
    st.write("")
    if st.button("Start the pocket run", type="primary"):
        start_pocket_run()
    st.caption("Your own model and tasks: *New run* in the menu, or `workbench run --help`.")


def table(runs: pd.DataFrame) -> pd.DataFrame:
    """The columns of the Runs table, in per cent and words."""
    return pd.DataFrame(
        {
            "run": runs["run_id"],
            "status": [screen.STATUS[status] for status in runs["status"]],
            "method": runs["method"],
            "ID": 100 * runs["now_id"],
            "ID − base": 100 * (runs["now_id"] - runs["base_id"]),
            "ID curve": [screen.per_cent(curve) for curve in runs["id_curve"]],
            "OOD": 100 * runs["now_ood"],
            "OOD − base": 100 * (runs["now_ood"] - runs["base_ood"]),
            "OOD curve": [screen.per_cent(curve) for curve in runs["ood_curve"]],
            "started": [screen.ago(time) for time in runs["created_at"]],
            "task": runs["train_task"],
            "base": [screen.short_model(model) for model in runs["model"]],
        }
    )


def all_runs() -> None:
    """The table; a click on a row opens the run."""
    screen.guarded(lambda: store.catch_up(HOME))
    runs = screen.observed(store.runs_frame(DB), HOME)
    screen.show_delay(DB)
    delta = st.column_config.NumberColumn(format="%+.1f")
    accuracy = st.column_config.NumberColumn(format="%.1f", help="Latest checkpoint, per cent")
    curve = st.column_config.LineChartColumn(y_min=0, y_max=100, width=110, help="Base to latest checkpoint")
    row = screen.pick_row(
        table(runs),
        runs[["run_id"]],
        "runs_table",
        column_config={
            "ID": accuracy,
            "OOD": accuracy,
            "ID − base": delta,
            "OOD − base": delta,
            "ID curve": curve,
            "OOD curve": curve,
        },
    )
    if row is not None:
        chosen_runs.watch([runs["run_id"].iloc[row]])


if not rundir.all_runs(HOME):
    welcome()
else:
    head, button = st.columns([4, 1], vertical_alignment="bottom")
    head.title("Runs")
    if button.button("Start the pocket run", width="stretch"):
        start_pocket_run()
    screen.live(all_runs, 5)
    st.caption(
        "ID: accuracy on the train task's test set. OOD: mean over the other tasks. Both for the latest "
        "checkpoint, in per cent, beside the base. Select a row to open the run, with n and intervals."
    )
