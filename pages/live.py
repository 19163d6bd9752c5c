"""One run, live: where it is, its accuracies as they land, its loss, its solutions, its log."""

from typing import Any

import pandas as pd
import streamlit as st

from workbench import charts, chosen_runs, evals, launch, ledger, queue_rows, recipes, rundir, screen, store, widgets
from workbench.redact import redacted
from workbench.rundir import RunDir

HOME = rundir.home()
DB = rundir.store_path(HOME)
LATEST = 30
LOG_LINES, LOG_BYTES = 40, 16_384


def read(run: RunDir) -> dict[str, Any] | None:
    """All that the page shows of a run, in one look at the store; None where it has no row yet."""
    with store.one_look(DB):
        mine = store.run_frame(DB, run.run_id)
        if mine.empty:
            return None
        return {
            "row": mine.iloc[0],
            "notes": evals.alerts_frame(DB, [run.run_id]),
            "phases": store.phases_frame(DB, run.run_id),
            "accuracies": store.evals_frame(DB, run.run_id),
            "loss": store.metrics_frame(DB, run.run_id, "loss"),
            "kept": store.kept_frame(DB, run.run_id),
            "solutions": store.solutions_frame(DB, run.run_id, LATEST),
            "spent": ledger.of_store(DB, run.run_id),
        }


def head(run: RunDir, row: pd.Series, notes: pd.DataFrame) -> str:
    """Title, state and buttons; return the state."""
    status, error = launch.observed_status(run)
    title, buttons = st.columns([4, 1], vertical_alignment="bottom")
    title.subheader(run.run_id)
    title.markdown(
        f":{screen.STATUS_COLOUR[status]}[{screen.STATUS[status]}] · "
        f"**{row['method']}** on **{screen.plain(row['train_task'])}** · base "
        f"`{screen.short_model(row['model'])}` · seed {row['seed']}"
        + (f" · alpha {row['alpha']:g}, p {row['drop_rate']:g}" if row["method"] == "imm" else "")
        + f" · started {screen.ago(row['created_at'])}"
    )
    if status in ("queued", "running"):
        with buttons.popover("Stop", width="stretch"):
            st.write("End this run? Finished work is kept, and it can be resumed.")
            if st.button("Stop the run", type="primary"):
                screen.attempt(lambda: launch.ask_stop(HOME, run.run_id))
                st.rerun()
    elif status in ("failed", "stopped") and buttons.button("Resume", type="primary", width="stretch"):
        screen.attempt(lambda: launch.resume(HOME, run.run_id))
        st.rerun()
    if status == "queued":
        st.info(f"Waiting: {queue_rows.why_waiting(HOME).get(run.run_id, 'starts in a moment')}.")
    if status == "stopping":
        st.info("Stopping: the phase at work is asked to end, and ended after some seconds if it does not.")
    screen.show_delay(DB)
    screen.show_alerts(notes)
    if error and status == "stopped":
        st.info(screen.plain(error))
    elif error:
        st.error("The run failed.")
        st.code(error, language=None, wrap_lines=True)
    return status


def progress(run: RunDir, phases: pd.DataFrame, status: str) -> None:
    """The timeline, and how far the phase at work is."""
    if phases.empty:
        if status == "running":
            st.info("The first phase is starting.")
        return
    now = pd.Timestamp.now("UTC").tz_localize(None)
    ended = phases["ended_at"].fillna(now if status == "running" else phases["started_at"])
    figure = charts.phase_timeline(phases.assign(ended_at=ended))
    widgets.chart(figure, "timeline", recipes.timeline, run_id=run.run_id)
    last = phases.iloc[-1]
    if status == "running" and pd.notna(last["total"]) and last["status"] == "running":
        share = min(1.0, last["done"] / last["total"])
        text = f"Iteration {last['iteration']}, {last['phase']}: {last['done']} of {last['total']} {last['unit']}"
        if pd.notna(last["rate"]):
            left = (last["total"] - last["done"]) / last["rate"]
            text += f" · {last['rate']:.3g} {last['unit']}/s · {screen.duration(left)} left in this phase"
        st.progress(share, text)


def figures(run: RunDir, row: pd.Series, accuracies: pd.DataFrame, loss: pd.DataFrame, kept: pd.DataFrame) -> None:
    """Accuracies, loss, kept share."""
    if accuracies.empty:
        st.info("The first accuracies appear when the base has been evaluated.")
    else:
        order = charts.checkpoint_order(row["method"], row["iterations"], "start" in set(accuracies["kind"]))
        figure = charts.accuracy_by_checkpoint(accuracies, order)
        widgets.chart(figure, "accuracy", recipes.accuracy_live, run_id=run.run_id)
        st.caption(
            "Points: accuracy with its 95 % Wilson interval (n on hovering). Dotted: the base. "
            "● base, ■ fine-tuned (SFT), ◆ merged."
        )
    left, right = st.columns(2)
    if not loss.empty:
        with left:
            widgets.chart(charts.by_step(loss, "SFT loss"), "loss", recipes.loss, run_id=run.run_id)
    if not kept.empty:
        with right:
            widgets.chart(charts.kept_share(kept), "kept", recipes.kept, run_id=run.run_id)


def solutions(latest: pd.DataFrame) -> None:
    """The latest sampled solutions, as text."""
    if latest.empty:
        st.caption("No solutions sampled yet.")
        return
    verdict = latest["kept"].map({True: "kept", False: ""})
    verdict = verdict.where(latest["kept"], latest["is_correct"].map({True: "duplicate", False: "wrong"}))
    shown = ["iteration", "verdict", "question", "text", "answer", "reference", "temperature"]
    screen.table(latest.assign(verdict=verdict)[shown], "solutions", wide=["question", "text"])


def cost(costs: pd.DataFrame, prices: pd.DataFrame) -> None:
    """What each phase and the run have cost, and what a point of accuracy gained has."""
    if costs.empty:
        st.caption("Nothing spent yet.")
        return
    screen.words_table(ledger.phase_table(costs), "costs")
    st.caption(
        "Every attempt at a phase counts, from the start of its process on; a killed one up to its last report. *Peak "
        "memory*: resident, of the phase's processes on this machine, in its last attempt. *Written*: what is left of "
        "it on disk. What was taken from another run of a comparison is not in the run's total."
    )
    if len(prices):
        screen.words_table(ledger.price_table(prices, charts.checkpoint_labels(prices)), "prices")
        st.caption(
            "A point: one per cent of the questions more than the base, question by question, with its 95 % interval; "
            "OOD is the mean over the tasks. Its price: all sampling, fine-tuning and merging that led to the "
            "checkpoint, as tokens *generated* and *trained on*, without evaluation and analysis. Where zero lies in "
            "the interval there is no sure gain to divide by."
        )


def log(run: RunDir, notes: pd.DataFrame) -> None:
    """What the phases noted, and the end of the runner's log and of the latest phase's."""
    if len(notes):
        screen.table(notes[["iteration", "phase", "kind", "text"]], "notes")
    for file in [run.log, *(place.log for place in run.phases()[-1:])]:
        if file.exists():
            st.caption(file.relative_to(run.path))
            with file.open("rb") as opened:
                opened.seek(max(0, file.stat().st_size - LOG_BYTES))
                lines = opened.read().decode(errors="replace").splitlines()[-LOG_LINES:]
            st.code(redacted("\n".join(lines)) or "(empty)", language=None, height=220)


def view(run: RunDir) -> None:
    """Everything, once."""
    seen = read(run)
    if seen is None:
        screen.show_delay(DB)
        st.info("The run is being set up.")
        return
    # A place for each part, always there, so that nothing moves when another part comes or goes.
    above, middle, below = st.container(), st.container(), st.container()
    with above:
        status = head(run, seen["row"], seen["notes"])
    with middle:
        progress(run, seen["phases"], status)
    with below:
        figures(run, seen["row"], seen["accuracies"], seen["loss"], seen["kept"])
    sampled, spent, words = st.tabs(["Latest solutions", "Cost", "Log"])
    with sampled:
        solutions(seen["solutions"])
    with spent:
        cost(*seen["spent"])
    with words:
        log(run, seen["notes"])


run = chosen_runs.pick_run(HOME)
if run is None:
    st.title("Live run")
else:
    alive = launch.observed_status(run)[0] in launch.ACTIVE
    screen.live(lambda: view(run), 2 if alive else 15)
