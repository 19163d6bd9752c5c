"""ID and OOD accuracy of one or many runs, pass@k, and any two checkpoints against each other."""

import pandas as pd
import streamlit as st

from workbench import arms, charts, chosen_runs, eval_charts, evals, paper, recipes, rundir, screen, store, widgets

HOME = rundir.home()
DB = rundir.store_path(HOME)
MOST = 24
GROUP, BOX = "comparison_group", "compared_runs"
KINDS = {"exact": "the same", "near": "nearly the same", "run": "similar, which do not count as seen"}


def pick_runs(runs: pd.DataFrame) -> list[str]:
    """The runs to show: the chosen ones; where none is, the newest with those that it is compared with."""
    groups, known = arms.groups_frame(DB), list(runs["run_id"])
    members = {group: list(found)[:MOST] for group, found in zip(groups["grouped"], groups["run_ids"], strict=True)}
    if known and not chosen_runs.ids() and BOX not in st.session_state:
        chosen_runs.choose(next((found for found in members.values() if known[0] in found), known[:1]))
    wanted = chosen_runs.ids()
    here = [run.run_id for run in rundir.all_runs(HOME)]
    chosen_runs.say_unknown([run_id for run_id in wanted if run_id not in here], here, "the box *Runs*")
    if late := [run_id for run_id in wanted if run_id in here and run_id not in known]:
        screen.live(lambda: wait_for(late), 2)
    state, right = st.session_state, st.container()
    if members:
        left, right = st.columns([1, 2])
        words = dict(zip(groups["grouped"], group_words(groups), strict=True))
        state[GROUP] = next((group for group, found in members.items() if set(found) == set(wanted)), None)
        left.selectbox(
            "Comparison", [None, *words], format_func=lambda name: words.get(name, "none: choose runs"), key=GROUP,
            on_change=lambda: chosen_runs.choose(members.get(state[GROUP], wanted[:1])),
        )  # fmt: skip
    state[BOX] = [run_id for run_id in wanted if run_id in known][:MOST]
    return right.multiselect(
        "Runs", known, max_selections=MOST, placeholder="Choose runs", key=BOX,
        on_change=lambda: chosen_runs.choose(state[BOX]),
    )  # fmt: skip


def wait_for(late: list[str]) -> None:
    """Say which runs are not in the store yet; draw the page anew once one of them is."""
    store.catch_up(HOME)
    if not set(late).isdisjoint(store.runs_frame(DB)["run_id"]):
        st.rerun()
    st.info(f"{', '.join(map(screen.plain, late))}: being set up.")


def group_words(groups: pd.DataFrame) -> list[str]:
    """What to call each comparison."""
    return [f"{r.grouped} · {r.train_task} · {r.num_done} of {r.num_runs} done" for r in groups.itertuples()]


def curves(runs: pd.DataFrame, called: pd.DataFrame, accuracies: pd.DataFrame) -> None:
    """One run by checkpoint and task; several by iteration, or by method with their seeds together."""
    if len(called) == 1:
        one_run(runs[runs["run_id"] == called["run_id"].iloc[0]].iloc[0], accuracies, called["taught"].iloc[0])
        return
    if called.groupby("arm")["seed"].nunique().max() > 1 and st.toggle("Seeds of a method together", value=True):
        pooled = arms.seeds_pooled(DB, called)
        if pooled.empty:
            st.info("The first point appears when every seed of a method has been evaluated.")
            return
        figure = eval_charts.runs_side_by_side(pooled, {arm: arm for arm in pooled["run_id"].unique()})
        widgets.chart(figure, "arms", recipes.methods_compared, run_ids=list(called["run_id"]))
        st.caption(
            "Each method's latest checkpoint of an iteration (◆ merged, ■ SFT), mean over its seeds; OOD: mean over "
            "tasks. 95 % intervals by bootstrap over seeds and questions."
        )
        if left_out := sorted({*called["run_id"]} - {*arms.counting(DB, called)["run_id"]}):
            st.caption(
                f"Not counted: {', '.join(left_out)}. Another run of the same method and seed has measured more, or it "
                "failed or was stopped and other seeds went on; resume it to have it counted."
            )
        with st.expander("The values of this chart (figures 6 and 7)"):
            screen.table(eval_charts.pooled_values(pooled), "pooled")
        return
    means = evals.domain_means(accuracies)
    figure = eval_charts.runs_side_by_side(means, charts.run_names(called))
    widgets.chart(figure, "runs", recipes.runs_compared, run_ids=list(called["run_id"]))
    st.caption(
        "Each run's latest checkpoint of an iteration (◆ merged, ■ SFT where a method does not merge), with 95 % "
        "intervals over questions: Wilson for one task, normal for the mean over several."
    )
    tasks = (
        accuracies[accuracies["domain"] == "OOD"].groupby("run_id")["task"].agg(lambda found: tuple(sorted(set(found))))
    )
    if tasks.nunique() > 1:
        st.warning("These runs have different OOD tasks, so their OOD means are not of the same questions.")


def one_run(row: pd.Series, accuracies: pd.DataFrame, taught: bool) -> None:
    """One run by checkpoint and task, with the paper's own values where it has any."""
    order = charts.checkpoint_order(row["method"], row["iterations"], "start" in set(accuracies["kind"]))
    theirs = paper.paper_frame(row["model"], row["train_task"], taught=taught)
    figure = charts.accuracy_by_checkpoint(accuracies, order, theirs)
    widgets.chart(figure, "accuracy", recipes.accuracy, run_id=row["run_id"])
    st.caption(
        "Points: accuracy with its 95 % Wilson interval. Dotted: the base. ● base, ■ SFT, ◆ merged."
        + f" × the paper's table {paper.DISTILLATION if taught else paper.SELF_IMPROVEMENT}, which prints no n."
        * (len(theirs) > 0)
    )


def values(names: dict[str, str], accuracies: pd.DataFrame) -> None:
    """Every value with n and interval, and without the questions that training has seen."""
    clean = 100 * accuracies[["clean_accuracy", "clean_low", "clean_high"]]
    table = pd.DataFrame(
        {
            "run": accuracies["run_id"].map(names),
            "checkpoint": charts.checkpoint_labels(accuracies),
            "task": accuracies["task"],
            "domain": accuracies["domain"],
            "accuracy, %": 100 * accuracies["accuracy"],
            "95 % from": 100 * accuracies["ci_low"],
            "to": 100 * accuracies["ci_high"],
            "n": accuracies["num_questions"],
            "smallest detectable": 100 * accuracies["smallest"].astype(float),
            "seen": accuracies["num_seen"],
            "unseen, %": clean["clean_accuracy"],
            "unseen from": clean["clean_low"],
            "unseen to": clean["clean_high"],
        }
    )
    if not accuracies["num_seen"].any():
        table = table.drop(columns=["seen", "unseen, %", "unseen from", "unseen to"])
    screen.table(table if len(names) > 1 else table.drop(columns="run"), "values")
    seen = evals.contamination_frame(DB, list(names))
    if seen.empty:
        st.caption("No question of these test sets was found in the train questions or in the kept solutions.")
        return
    found = seen.groupby(["task", "source", "kind"])["num_questions"].max().reset_index()
    st.caption(
        "*seen*: test questions also found in training, *unseen*: accuracy on the others (n less *seen*). Found: "
        + "; ".join(f"{r.task}: {r.num_questions} {KINDS[r.kind]}, {r.source}" for r in found.itertuples())
    )


def passes(names: dict[str, str]) -> None:
    """pass@k curves of one task."""
    frame = evals.pass_frame(DB, list(names))
    if frame.empty:
        st.info(
            "No sampled answers yet. Set evaluate.num_samples (M) in a run: every checkpoint then answers each "
            "question M times, and pass@k shows whether what greedy decoding lost can still be sampled."
        )
        return
    tasks = list(frame.sort_values("domain")["task"].unique())
    task = st.segmented_control("Task", tasks, default=tasks[0], key="pass_task") or tasks[0]
    mine = frame[frame["task"] == task]
    figure = eval_charts.pass_at_k(mine, names)
    widgets.chart(figure, "pass_at_k", recipes.pass_at_k, run_ids=list(names), task=task)
    st.caption(
        f"Chance that at least one of k sampled answers is right, unbiased from M = {mine['num_samples'].max()} "
        f"answers each to {mine['num_questions'].max()} questions; bands: 95 % bootstrap over questions."
    )


def comparison(accuracies: pd.DataFrame, names: dict[str, str]) -> None:
    """Any two checkpoints on the same questions."""
    known = accuracies.drop_duplicates("checkpoint_id")
    labels = charts.checkpoint_labels(known)
    if len(names) > 1:
        labels = [f"{names[run]}: {label}" for run, label in zip(known["run_id"], labels, strict=True)]
    ids = dict(zip(labels, known["checkpoint_id"], strict=True))
    left, right = st.columns(2)
    first = left.selectbox("From", list(ids), key="first_checkpoint")
    second = right.selectbox("to", list(ids), index=len(ids) - 1, key="second_checkpoint")
    table = evals.compared(DB, ids[first], ids[second])
    if table.empty:
        st.info("Choose two different checkpoints that have answered the same questions.")
        return
    greedy = table[table["measure"] == "accuracy"]
    figure = eval_charts.differences(greedy)
    widgets.chart(figure, "differences", recipes.two_checkpoints, first=ids[first], second=ids[second])
    screen.table(in_words(table), "comparison")
    st.caption(
        f"Change from *{first}* to *{second}*, question by question; above zero *{second}* is better. Interval: Bonett "
        "and Price; p: exact McNemar, Holm-corrected over the tasks; pass@k: paired bootstrap. *Smallest detectable*: "
        "less than this, n questions cannot show."
    )


def in_words(table: pd.DataFrame) -> pd.DataFrame:
    """A comparison in per cent."""
    return pd.DataFrame(
        {
            "on": table["scope"],
            "measure": table["measure"],
            "n": table["num_questions"],
            "from, %": 100 * table["first"],
            "to, %": 100 * table["second"],
            "change": 100 * table["difference"],
            "95 % interval": [
                f"{100 * low:+.1f} to {100 * high:+.1f}"
                for low, high in zip(table["ci_low"], table["ci_high"], strict=True)
            ],
            "p (McNemar)": table["p_value"],
            "p (Holm)": table["p_holm"],
            "smallest detectable": 100 * table["smallest"],
        }
    )


def view(runs: pd.DataFrame, chosen: list[str]) -> None:
    """Everything of the chosen runs."""
    accuracies = evals.accuracy_frame(DB, chosen)
    if accuracies.empty:
        st.info("The first accuracies appear when the base has been evaluated.")
        return
    called = arms.arms_frame(DB, chosen)
    names = charts.run_names(called)
    screen.show_alerts(evals.alerts_frame(DB, chosen), names)
    curves(runs, called, accuracies)
    one, two, three = st.tabs(["Two checkpoints", "All values", "pass@k"])
    with one:
        comparison(accuracies, names)
    with two:
        values(names, accuracies)
    with three:
        passes(names)


st.title("Accuracy")
known = screen.guarded(lambda: store.runs_frame(DB))
if not rundir.all_runs(HOME):
    st.info("There is no run yet. Start one on the page *Runs* or *New run*.")
elif known is not None:
    picked = screen.guarded(lambda: pick_runs(known))
    if picked:
        screen.live(lambda: view(known, picked), 10)
