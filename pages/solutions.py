"""What the model wrote: browse, compare two checkpoints, watch diversity, and check the grader."""

import html
import re

import pandas as pd
import streamlit as st

from workbench import (
    charts,
    chosen_runs,
    eval_charts,
    evals,
    grading,
    recipes,
    regrade,
    rundir,
    screen,
    solutions,
    store,
    widgets,
)
from workbench.rundir import RunDir
from workbench.solutions import VERDICTS, Filter

HOME = rundir.home()
DB = rundir.store_path(HOME)
PAGE = 50
AUDITED = 500


def marked(text: str, answer: str | None, is_correct: bool) -> str:
    """A text as HTML in which nothing is live, its final answer highlighted where it last stands."""
    answer = answer if isinstance(answer, str) else None  # a frame holds NaN where there is none
    at = answer_at(text, answer)
    colour = "rgba(0,158,115,.35)" if is_correct else "rgba(213,94,0,.35)"
    body = html.escape(text)
    if at >= 0:
        before, after = text[:at], text[at + len(answer) :]
        mark = f'<mark style="background:{colour};color:inherit">{html.escape(answer)}</mark>'
        body = f"{html.escape(before)}{mark}{html.escape(after)}"
    return f'<div style="white-space:pre-wrap;font-family:monospace;font-size:.85rem">{body}</div>'


def answer_at(text: str, answer: str | None) -> int:
    """Where an answer last stands as a whole, not as a part of a longer number or word; -1 where it does not."""
    if not answer:
        return -1
    found = [match.start() for match in re.finditer(rf"(?<![\w.]){re.escape(answer)}(?!\w|\.\d)", text)]
    return found[-1] if found else text.rfind(answer)


def pages(count: int, key: str) -> int:
    """Which page of the rows; the offset of its first one."""
    last = max(1, -(-count // PAGE))
    if last == 1:
        return 0
    number = st.number_input(f"Page of {last}", 1, last, key=key)
    return (int(number) - 1) * PAGE


def labelled(label: str, text: str) -> str:
    """A short text behind its label, as HTML in which nothing is live."""
    return f"<small>{label}: <code>{html.escape(text)}</code></small>"


def detail(row: pd.Series, run: RunDir, phase: str) -> None:
    """One row in full: question, prompt, text with its answer, reference."""
    left, right = st.columns(2)
    left.caption("Question")
    left.html(marked(row["question"], None, False))
    left.html(labelled("Reference", row["reference"]))
    right.caption(f"Solution · {'right' if row['is_correct'] else 'wrong'} · {row['num_tokens']} tokens")
    right.html(marked(row["text"], row["answer"], row["is_correct"]))
    right.html(labelled("Answer found", row["answer"] if isinstance(row["answer"], str) else "none"))
    with st.expander("The prompt, exactly as sent"):
        text = screen.attempt(lambda: solutions.sent(run.phase(int(row["iteration"]), phase), row["question"]))
        if text:
            st.code(text, language=None, wrap_lines=True)


def listing(rows: pd.DataFrame, columns: list[str], key: str) -> pd.Series | None:
    """A table of rows; the one that was picked."""
    wide = [name for name in ("question", "text") if name in columns]
    row = screen.pick_row(rows[columns], rows, key, wide=wide)
    return None if row is None else rows.iloc[row]


def browse_sampled(run: RunDir, iterations: list[int], temperatures: list[float]) -> None:
    """Sampled solutions to the train questions."""
    one, two, three, four = st.columns([1, 1.2, 1, 2])
    iteration = one.selectbox("Iteration", iterations, index=len(iterations) - 1)
    verdict = two.selectbox("Show", list(VERDICTS))
    temperature = three.selectbox(
        "Temperature", [None, *temperatures], format_func=lambda t: "all" if t is None else f"{t:g}"
    )
    text = four.text_input("Search in questions and solutions")
    wanted = Filter(run.run_id, iteration, verdict, temperature, text)
    count, _ = solutions.sampled(DB, wanted, 0)
    offset = pages(count, "sampled_page")
    _, rows = solutions.sampled(DB, wanted, PAGE, offset)
    st.caption(f"{count:,} solutions")
    shown = ["question_id", "temperature", "kept", "is_correct", "text", "answer", "reference", "num_tokens"]
    row = listing(rows, shown, "sampled")
    if row is not None:
        detail(row, run, "sample")


def checkpoints_of(run: RunDir) -> tuple[dict[str, str], list[str]]:
    """(label -> id of every evaluated checkpoint, tasks)."""
    found = store.evals_frame(DB, run.run_id)
    known = found.drop_duplicates("checkpoint_id")
    labels = dict(zip(charts.checkpoint_labels(known), known["checkpoint_id"], strict=True))
    return labels, list(found.sort_values(["domain", "task"])["task"].unique())


def browse_answers(run: RunDir, labels: dict[str, str], tasks: list[str]) -> None:
    """A checkpoint's answers to a test set."""
    one, two, three, four = st.columns([1, 1.2, 1, 2])
    checkpoint = one.selectbox("Checkpoint", list(labels), index=len(labels) - 1)
    task = two.selectbox("Task", tasks)
    verdict = three.selectbox("Show", ["all", "right", "wrong", "no answer"], key="answer_verdict")
    text = four.text_input("Search in questions and answers")
    count, _ = solutions.answered(DB, labels[checkpoint], task, verdict, text, 0)
    offset = pages(count, "answers_page")
    _, rows = solutions.answered(DB, labels[checkpoint], task, verdict, text, PAGE, offset)
    st.caption(f"{count:,} answers; sample 0 is the greedy one")
    columns = ["question_id", "sample", "is_correct", "text", "answer", "reference", "num_tokens"]
    row = listing(rows, columns, "answers")
    if row is not None:
        detail(row, run, "evaluate")


def browse_flips(labels: dict[str, str], tasks: list[str]) -> None:
    """Where two checkpoints differ in being right."""
    one, two, three = st.columns(3)
    first = one.selectbox("From", list(labels), key="flip_first")
    second = two.selectbox("to", list(labels), index=len(labels) - 1, key="flip_second")
    task = three.selectbox("Task", tasks, key="flip_task")
    rows = solutions.flipped(DB, labels[first], labels[second], task)
    gained = int(rows["gained"].sum()) if len(rows) else 0
    st.caption(f"From {first} to {second}: {gained} gained, {len(rows) - gained} lost")
    words = rows.assign(change=rows["gained"].map({True: "gained", False: "lost"}))
    row = listing(words, ["question_id", "change", "question", "answer_first", "answer_second", "reference"], "flips")
    if row is not None:
        st.html(marked(row["question"], None, False))
        left, right = st.columns(2)
        left.caption(first)
        left.html(marked(row["text_first"], row["answer_first"], not row["gained"]))
        right.caption(second)
        right.html(marked(row["text_second"], row["answer_second"], bool(row["gained"])))


def diversity(run: RunDir) -> None:
    """The collapse monitor."""
    screen.show_alerts(evals.alerts_frame(DB, [run.run_id]))
    frame = evals.diversity_frame(DB, run.run_id)
    if frame.empty:
        st.info("Diversity is measured at the end of each sampling phase.")
        return
    widgets.chart(eval_charts.diversity(frame), "diversity", recipes.diversity, run_id=run.run_id)
    st.caption(
        "Over the solutions to one question, averaged over questions. Falling distinct shares and entropy, or rising "
        "self-BLEU, say that the model is collapsing onto one way to answer; thresholds: settings under monitor."
    )


def audit(run: RunDir, labels: dict[str, str], tasks: list[str]) -> None:
    """Where the grader and a second one differ, and what another grading changed."""
    st.markdown(
        "Two graders look at the same texts: the workbench's, and math-verify with its own rules for finding the "
        "answer. Where they differ, one is wrong, or the text is unclear. Read before you trust a number."
    )
    one, two, three = st.columns([1, 1, 1], vertical_alignment="bottom")
    checkpoint = one.selectbox("Checkpoint", list(labels), index=len(labels) - 1, key="audit_checkpoint")
    task = two.selectbox("Task", tasks, key="audit_task")
    _, rows = solutions.answered(DB, labels[checkpoint], task, "all", "", AUDITED)
    if three.button(f"Audit {len(rows)} answers", type="primary"):
        formats = solutions.formats(DB, run.run_id)
        with st.spinner("math-verify is reading"):
            found = grading.disagreements(rows.to_dict("records"), formats)
            st.session_state["audit"] = labels[checkpoint], task, found, len(rows)
    done = st.session_state.get("audit")
    if done and done[:2] == (labels[checkpoint], task):
        cases, count = done[2:]
        st.caption(f"{len(cases)} of {count} answers: the graders differ")
        if cases:
            columns = ["question_id", "is_correct", "answer", "second_is_correct", "second_answer", "reference", "text"]
            row = listing(pd.DataFrame(cases), columns, "audit_rows")
            if row is not None:
                detail(row, run, "evaluate")
    st.divider()
    again, said = st.columns([1, 3], vertical_alignment="center")
    if again.button("Grade the run again"):
        found = screen.attempt(lambda: regrade.regrade(HOME, run.run_id))
        if found:
            said.success(f"{found['changed']} of {found['rows']} grades changed; every change is recorded.")
    changed = store.query(DB, "SELECT * EXCLUDE (run_id) FROM regrades WHERE run_id = ? ORDER BY ts DESC", [run.run_id])
    if len(changed):
        st.caption("Grades that a later grading changed, by which grader")
        screen.table(changed, "regrades")


def view(run: RunDir) -> None:
    """Every tab."""
    about = store.query(
        DB,
        "SELECT DISTINCT iteration, temperature FROM solutions WHERE run_id = ? ORDER BY ALL",
        [run.run_id],
    )
    labels, tasks = checkpoints_of(run)
    one, two, three, four, five = st.tabs(
        ["Sampled solutions", "Answers to test questions", "Flipped", "Diversity", "Grader audit"]
    )
    with one:
        if about.empty:
            st.info("No solutions sampled yet.")
        else:
            browse_sampled(run, sorted(set(about["iteration"])), sorted(set(about["temperature"])))
    for tab, draw in (
        (two, lambda: browse_answers(run, labels, tasks)),
        (three, lambda: browse_flips(labels, tasks)),
        (five, lambda: audit(run, labels, tasks)),
    ):
        with tab:
            if labels:
                draw()
            else:
                st.info("The first answers appear when the base has been evaluated.")
    with four:
        diversity(run)


st.title("Solutions")
picked = chosen_runs.pick_run(HOME)
if picked is not None:
    screen.guarded(lambda: view(picked))
