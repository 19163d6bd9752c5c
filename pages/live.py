"""One run, live: where it is, its accuracies as they land, its loss, its solutions, its log."""

import pandas as pd
import streamlit as st

from workbench import charts, launch, rundir, screen, store, widgets
from workbench.rundir import RunDir

HOME = rundir.home()
DB = rundir.store_path(HOME)
LATEST = 30
LOG_LINES = 40


def head(run: RunDir, row: pd.Series) -> str:
    """Title, state and buttons; return the state."""
    status, error = launch.observed_status(run)
    title, buttons = st.columns([4, 1], vertical_alignment="bottom")
    title.subheader(run.run_id)
    title.markdown(
        f":{screen.STATUS_COLOUR[status]}[{screen.STATUS[status]}] · "
        f"**{row['method']}** on **{row['train_task']}** · base "
        f"`{screen.short_model(row['model'])}` · seed {row['seed']}"
        + (f" · alpha {row['alpha']:g}, p {row['drop_rate']:g}" if row["method"] == "imm" else "")
        + f" · started {screen.ago(row['created_at'])}"
    )
    if status in ("queued", "running"):
        with buttons.popover("Stop", width="stretch"):
            st.write("End this run? Finished work is kept, and it can be resumed.")
            if st.button("Stop the run", type="primary"):
                screen.attempt(lambda: launch.stop(HOME, run.run_id))
                st.rerun()
    elif status != "done" and buttons.button("Resume", type="primary", width="stretch"):
        screen.attempt(lambda: launch.resume(HOME, run.run_id))
        st.rerun()
    if status == "queued":
        st.info("Waiting for another run on this machine to end.")
    if error:
        st.error("The run failed.")
        st.code(error, language=None, wrap_lines=True)
    return status


def progress(phases: pd.DataFrame, status: str) -> None:
    """The timeline, and how far the phase at work is."""
    if phases.empty:
        st.info("The first phase is starting.")
        return
    now = pd.Timestamp.now("UTC").tz_localize(None)
    ended = phases["ended_at"].fillna(now if status == "running" else phases["started_at"])
    widgets.chart(charts.phase_timeline(phases.assign(ended_at=ended)), "timeline")
    last = phases.iloc[-1]
    if status == "running" and pd.notna(last["total"]) and last["status"] == "running":
        share = min(1.0, last["done"] / last["total"])
        text = f"Iteration {last['iteration']}, {last['phase']}: {last['done']} of {last['total']} {last['unit']}"
        if pd.notna(last["rate"]):
            left = (last["total"] - last["done"]) / last["rate"]
            text += f" · {last['rate']:.3g} {last['unit']}/s · {screen.duration(left)} left in this phase"
        st.progress(share, text)


def figures(run: RunDir, row: pd.Series) -> None:
    """Accuracies, loss, kept share."""
    evals = store.evals_frame(DB, run.run_id)
    if evals.empty:
        st.info("The first accuracies appear when the base has been evaluated.")
    else:
        order = charts.checkpoint_order(row["method"], row["iterations"], "start" in set(evals["kind"]))
        widgets.chart(charts.accuracy_by_checkpoint(evals, order), "accuracy")
        st.caption(
            "Points: accuracy with its 95 % Wilson interval (n on hovering). Dotted: the base. "
            "● base, ■ fine-tuned (SFT), ◆ merged."
        )
    left, right = st.columns(2)
    loss, kept = store.metrics_frame(DB, run.run_id, "loss"), store.kept_frame(DB, run.run_id)
    if not loss.empty:
        with left:
            widgets.chart(charts.by_step(loss, "SFT loss"), "loss")
    if not kept.empty:
        with right:
            widgets.chart(charts.kept_share(kept), "kept")


def solutions(run: RunDir) -> None:
    """The latest sampled solutions, as text."""
    latest = store.solutions_frame(DB, run.run_id, LATEST)
    if latest.empty:
        st.caption("No solutions sampled yet.")
        return
    verdict = latest["kept"].map({True: "kept", False: ""})
    verdict = verdict.where(latest["kept"], latest["is_correct"].map({True: "duplicate", False: "wrong"}))
    st.dataframe(
        latest.assign(verdict=verdict)[
            ["iteration", "verdict", "question", "text", "answer", "reference", "temperature"]
        ],
        hide_index=True,
        column_config={name: st.column_config.TextColumn(width="large") for name in ("question", "text")},
        key="solutions",
    )


def log(run: RunDir) -> None:
    """The end of the runner's log and of the latest phase's."""
    for file in [run.log, *(place.log for place in run.phases()[-1:])]:
        if file.exists():
            st.caption(file.relative_to(run.path))
            lines = file.read_text(errors="replace").splitlines()[-LOG_LINES:]
            st.code("\n".join(lines) or "(empty)", language=None, height=220)


def view(run: RunDir) -> None:
    """Everything, once."""
    rows = store.runs_frame(DB)
    mine = rows[rows["run_id"] == run.run_id]
    if mine.empty:
        st.info("The run is being set up.")
        return
    row = mine.iloc[0]
    # A place for each part, always there, so that nothing moves when another part comes or goes.
    above, middle, below = st.container(), st.container(), st.container()
    with above:
        status = head(run, row)
    with middle:
        progress(store.phases_frame(DB, run.run_id), status)
    with below:
        figures(run, row)
    sampled, words = st.tabs(["Latest solutions", "Log"])
    with sampled:
        solutions(run)
    with words:
        log(run)


run = screen.pick_run(HOME)
if run is None:
    st.title("Live run")
    st.info("There is no run yet. Start one on the page *Runs* or *New run*.")
else:
    alive = launch.observed_status(run)[0] in ("queued", "running")
    st.fragment(lambda: screen.attempt(lambda: view(run)), run_every=2 if alive else 15)()
