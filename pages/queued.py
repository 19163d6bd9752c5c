"""The queue: what works where, what waits and why; order, priority, hold, pause, stop."""

import streamlit as st

from workbench import chosen_runs, launch, queue_rows, queueing, rundir, screen

HOME = rundir.home()
WIDTHS = [5, 1.2, 4, 3.4]
SHOWN = 30


def controls() -> None:
    """Pause, and what happens after a failure."""
    settings = queueing.settings_of(HOME)
    left, middle, right = st.columns([1.3, 2.2, 3], vertical_alignment="center")
    if left.button("Go on" if settings.paused else "Pause", type="primary" if settings.paused else "secondary",
                   width="stretch", help="A pause starts no more runs; those that work go on."):  # fmt: skip
        queueing.change_settings(HOME, paused=not settings.paused)
        st.rerun(scope="fragment")
    goes_on = middle.toggle("Go on after a failed run", settings.continue_on_error)
    if goes_on != settings.continue_on_error:
        queueing.change_settings(HOME, continue_on_error=goes_on, paused=settings.paused)
    left_over = queueing.free(HOME)
    cores = f"{left_over.cores} of {queueing.spare_threads()} cores free"
    gpus = f"{len(left_over.gpus)} of {len(queueing.gpu_ids())} GPUs free, " if queueing.gpu_ids() else ""
    right.markdown(f":gray[{gpus}{cores}]")
    if settings.paused:
        st.warning(f"The queue is paused{': ' + settings.why if settings.why else ''}. Runs that work go on.")


def one(row: dict, waits: int) -> None:
    """One line of the queue, with its buttons; `waits`: how many wait."""
    name, priority, text, actions = st.columns(WIDTHS, vertical_alignment="center")
    name.markdown(f"`{row['name']}`")
    text.markdown(row["text"])
    buttons = actions.container(horizontal=True, gap="small")
    if row["works"]:
        priority.markdown(f"{row['priority']}")
    else:
        chosen = priority.number_input(
            "Priority",
            -100,
            100,
            row["priority"],
            label_visibility="collapsed",
            key=f"priority-{row['name']}-{row['priority']}",
        )
        if chosen != row["priority"]:
            act(lambda: queueing.change(HOME, row["name"], priority=chosen))
        if button(buttons, row, "arrow_upward", "One place forward", disabled=row["turn"] == 1):
            act(lambda: queueing.move(HOME, row["name"], -1))
        if button(buttons, row, "arrow_downward", "One place back", disabled=row["turn"] == waits):
            act(lambda: queueing.move(HOME, row["name"], 1))
        words = ("play_arrow", "Let it start in its turn") if row["held"] else ("pause", "Hold it back; others pass")
        if button(buttons, row, *words):
            act(lambda: queueing.change(HOME, row["name"], held=not row["held"]))
    if row["kind"] == "run":
        if button(buttons, row, "visibility", "Open its live page"):
            chosen_runs.watch([row["name"]])
        stopping = row["status"] == "stopping"
        if button(buttons, row, "stop_circle", "Stop it; it can be resumed", disabled=stopping):
            act(lambda: launch.ask_stop(HOME, row["name"]))


def button(place, row: dict, icon: str, words: str, *, disabled: bool = False) -> bool:
    """A small button that says on hovering what it does."""
    return place.button(
        f":material/{icon}:", type="tertiary", help=words, disabled=disabled, key=f"{icon}-{row['name']}"
    )


def act(change) -> None:
    """Do what a button asks for, and draw anew."""
    screen.attempt(change)
    st.rerun(scope="fragment")


def queue() -> None:
    """Everything, with a line for each."""
    queueing.ensure(HOME)
    controls()
    rows = queue_rows.rows(HOME)
    for title, there in (
        ("Working", [r for r in rows if r["works"]]),
        ("Waiting", [r for r in rows if not r["works"]]),
    ):
        st.subheader(title)
        if not there:
            st.caption("Nobody." if title == "Working" else "Nobody waits.")
            continue
        for label, column in zip(
            ("", "priority", "where" if title == "Working" else "why", ""), st.columns(WIDTHS), strict=True
        ):
            column.caption(label)
        for row in there[:SHOWN]:
            one(row, len(there))
        if len(there) > SHOWN:
            st.caption(f"and {len(there) - SHOWN} more: `workbench queue` shows all")
    told = screen.alerts_told(HOME)
    if len(told):
        st.subheader("Alerts")
        screen.table(told, "told", wide=["alert"])


st.title("Queue")
screen.live(queue, 2)
st.caption(
    "One supervisor works the queue off in order; nobody is overtaken, held ones are passed. It outlives this page, "
    "and is replaced when it is killed. Whom to tell when a run fails or falls silent: `alerts.toml` in the home; "
    "`workbench queue test-alert` tries it."
)
