"""The merge lab: sliders that answer, merges measured, compared, searched, and taken into use."""

from pathlib import Path

import pandas as pd
import streamlit as st

from workbench import chosen_runs, launch, merge_charts, merges, recipes, rundir, screen, store, widgets
from workbench import lab as labs
from workbench.labdir import (
    BASE,
    SFT,
    Export,
    LabConfig,
    LabDir,
    Point,
    Search,
    label,
    point_id,
    read_config,
    requests_left,
)
from workbench.settings import merge_config

HOME = rundir.home()
DB = rundir.store_path(HOME)
BEGIN = {
    "alpha": 0.5, "drop_rate": 0.2, "seed": 0, "rule": "dare", "profile": "uniform", "points": [0.5] * 5,
    "towards": "base",
}  # fmt: skip


def pick_lab() -> LabDir | None:
    """The lab of the run and iteration chosen in the side bar, or of three directories."""
    if st.sidebar.toggle("Merge other directories", help="Any base, start and sft instead of a run's."):
        with st.sidebar:
            base = st.text_input("Base", placeholder="directory")
            sft = st.text_input("sft", placeholder="directory; a LoRA adapter will do")
            start = st.text_input("Start", placeholder="the base")
            tasks = st.text_input("Tasks (first is ID)", placeholder="names or directories, with commas")
            trusted = screen.ask_trust(False, "merge_trust")
        names = [name.strip() for name in tasks.split(",") if name.strip()]
        named = {f"Task {number}": name for number, name in enumerate(names, 1)}
        if not (base and sft):
            st.info("Name a base and an sft directory in the side bar.")
            return None
        if not screen.places(Base=base, Start=start, sft=sft, **named):
            return None
        sources = launch.task_sources(names, HOME)
        config = LabConfig(base=base, start=start or base, sft=sft, id_task=sources[0] if sources else None,
                           ood_tasks=tuple(sources[1:]), trust_remote_code=trusted)  # fmt: skip
        return screen.attempt(lambda: labs.open_directories(HOME, config))
    run = chosen_runs.pick_run(HOME)
    if run is None:
        return None
    done = labs.iterations(run)
    if not done:
        st.info("This run has no fine-tuned checkpoint yet; merges begin with the first.")
        return None
    iteration = st.sidebar.selectbox("Iteration", done, index=len(done) - 1)
    return screen.attempt(lambda: labs.open_lab(HOME, run.run_id, iteration))


def sliders(lab: LabDir, pair: dict) -> dict:
    """The merge that the sliders were last left at."""
    known = pair | {"importance": labs.layer_importance(lab)}
    return widgets.merge_lab(known, lab.lab_id, BEGIN, f"lab-{lab.lab_id}", recipes.merge_distances)


def measure(lab: LabDir, chosen: dict) -> None:
    """Ask for the chosen merge, on every seed wanted, and for the base and sft to hold it against."""
    ask, how_many, seeds, beside = st.columns([2, 2, 2, 3], vertical_alignment="bottom")
    num_questions = how_many.number_input("Questions per task", 10, 5000, 200, step=50)
    num_seeds = seeds.number_input("Seeds", 1, 20, 1, help="From the chosen one on; each drops other changes.")
    share = beside.toggle("Beside a running run, on one core", help="Otherwise it waits until the machine is free.")
    merge = screen.attempt(lambda: merge_config({k: v for k, v in chosen.items() if k != "seed"}))
    if ask.button("Evaluate this merge", type="primary", width="stretch", disabled=merge is None):
        wanted = [(merge, int(chosen["seed"]) + n) for n in range(num_seeds)] + [(BASE, 0), (SFT, 0)]
        have = screen.attempt(lambda: merges.measured(store.merges_frame(DB, lab.lab_id), num_questions))
        if have is None:
            return
        asked = [
            Point(merge=m, seed=s, num_questions=num_questions, beside=share)
            for m, s in {point_id(m, s): (m, s) for m, s in wanted if point_id(m, s) not in have}.values()
        ]
        labs.ask(lab, *asked)
        if not asked:
            st.toast("Already measured on as many questions.")


def state(lab: LabDir) -> None:
    """What the lab is doing, and how to stop it."""
    now, left = labs.observed(lab), requests_left(lab)
    if now["error"]:
        st.error(screen.plain(now["error"]))
    if now["doing"] or left:
        text, stop = st.columns([6, 1], vertical_alignment="center")
        share = now["done"] / now["total"] if now["total"] else 0.0
        waits = f" · {len(left) - 1} more asked for" if len(left) > 1 else ""
        text.progress(share, f"{now['doing'] or 'starting'}: {now['done']} of {now['total']} answers{waits}")
        if stop.button("Stop", width="stretch"):
            labs.cancel(lab)
    else:
        st.caption("Idle. The engine stays warm for three minutes after the last merge.")


def measured(lab: LabDir) -> None:
    """Everything measured, drawn; again and again while the lab works."""
    state(lab)
    evals = store.merges_frame(DB, lab.lab_id)
    evals = evals[evals["split"] == "validation"]
    table = merges.points(evals)
    if table.empty:
        st.info("No merge measured yet. Leave the sliders where you want them and evaluate.")
        return
    where, trade = st.tabs(["Over alpha and p", "ID against OOD"])
    with where:
        widgets.chart(merge_charts.surface(table), "surface", recipes.merges_measured, lab_id=lab.lab_id)
        st.caption("Per cent, on the validation questions. Hatched: not measured. Hover for n and interval.")
    with trade:
        widgets.chart(merge_charts.front(table), "front", recipes.merges_traded, lab_id=lab.lab_id)
        st.caption("Bars: 95 % intervals. The line joins merges that no other beats on both.")
    compare(lab, table, evals)


def compare(lab: LabDir, table: pd.DataFrame, evals: pd.DataFrame) -> None:
    """Pinned merges against base and sft, paired, with the questions that flipped."""
    st.subheader("Compare merges")
    labels = dict(zip(table["point_id"], table["label"], strict=True)) | {merges.BASE_ID: "base", merges.SFT_ID: "sft"}
    others = [name for name in table["point_id"] if name not in (merges.BASE_ID, merges.SFT_ID)]
    pinned = st.multiselect(
        "Pinned merges", others, default=others[:1], format_func=labels.get, key=f"pin-{lab.lab_id}"
    )
    wanted = [merges.BASE_ID, merges.SFT_ID, *pinned]
    outcomes = store.merge_outcomes_frame(DB, lab.lab_id, wanted, "validation")
    found = merges.comparison(outcomes, dict(zip(evals["task"], evals["domain"], strict=True)), pinned)
    if found.empty:
        st.caption("Pin a merge, and measure base and sft on the same questions, to see the paired tests.")
        return
    shown = merges.presentable(found, labels)
    figure = merge_charts.differences(found, labels)
    widgets.chart(figure, "differences", recipes.merges_compared, lab_id=lab.lab_id, pinned=pinned)
    screen.table(shown, "merges")
    st.caption(
        "Paired on the same questions; the OOD tasks are pooled. p: exact McNemar; Holm: corrected over this table. "
        "Smallest detectable: no smaller difference could be significant with this n."
    )
    csv, tex, _ = st.columns([1, 1, 4])
    csv.download_button("CSV", shown.to_csv(index=False), "merges.csv", width="stretch")
    tex.download_button("LaTeX", merges.latex(shown, f"Merges of {lab.lab_id}"), "merges.tex", width="stretch")
    sides = st.columns(2)
    first = sides[0].selectbox("Flipped questions: from", wanted, index=0, format_func=labels.get)
    second = sides[1].selectbox("to", wanted, index=len(wanted) - 1, format_func=labels.get)
    changed = merges.flips(outcomes, first, second)
    st.caption(
        f"{len(changed)} questions flipped, {int((~changed['is_correct'].astype(bool)).sum())} of them to right."
    )
    screen.table(
        changed.rename(columns={"text": labels[first], "text_second": labels[second]} if first != second else {}),
        "merge_flips",
        height=min(400, 60 + 35 * len(changed)),
    )


def search(lab: LabDir) -> None:
    """A grid, or an optimiser with a budget."""
    grid, budget = st.columns(2, gap="large")
    with grid, st.form("grid", border=False):
        st.markdown("**Grid**")
        alphas = st.multiselect("alpha", [n / 10 for n in range(11)], [0.2, 0.4, 0.6, 0.8])
        drops = st.multiselect("p", [0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 0.95], [0.0, 0.5, 0.9])
        num = st.number_input("Questions per task", 10, 5000, 100, step=50)
        if st.form_submit_button("Measure the grid"):
            ends = [Point(merge=m, num_questions=num) for m in (BASE, SFT)]
            cells = [merge_config({"alpha": a, "drop_rate": p}) for a in alphas for p in drops]
            labs.ask(lab, *ends, *(Point(merge=m, num_questions=num) for m in cells))
    with budget, st.form("search", border=False):
        st.markdown("**Search with a budget**")
        points = st.number_input("Merges to try", 1, 200, 12)
        num = st.number_input("Questions per task", 10, 5000, 200, step=50)
        st.caption("Optuna's multi-objective TPE, for ID and OOD at once, on all points measured so far.")
        if st.form_submit_button("Search"):
            labs.ask(lab, Search(num_points=points, num_questions=num))


def use(lab: LabDir, chosen: dict) -> None:
    """Write the chosen merge, open the test split, or go on from it."""
    merge = screen.attempt(lambda: merge_config({k: v for k, v in chosen.items() if k != "seed"}))
    if merge is None:
        return
    seed, config = int(chosen["seed"]), read_config(lab)
    name = point_id(merge, seed)
    st.markdown(f"The sliders' merge: **{label(merge, seed)}**")
    default = HOME / "exports" / f"{lab.lab_id}-{name}"
    directory = screen.place_to_write(st.text_input("Write it to", str(default)))
    if directory is None:
        return
    write, go_on, _ = st.columns([1, 1, 2])
    if write.button("Write the checkpoint", width="stretch"):
        labs.ask(lab, Export(merge=merge, seed=seed, directory=str(directory)))
    written = (directory / "merge.json").exists()
    if written:
        st.success(f"{directory} holds a checkpoint with its card and verification report.")
        screen.merge_report(rundir.read_json(directory / "merge.json"))
    if config.run_id and go_on.button("Continue the run from it", width="stretch", disabled=not written):
        screen.launch_and_watch(launch.continuation(HOME, config.run_id, directory), HOME)
    tests = store.merges_frame(DB, lab.lab_id)
    tests = tests[tests["split"] == "test"]
    opened = tests["point_id"].nunique()
    st.markdown(
        f"**The test split** has been opened for {opened} merge{'s' * (opened != 1)} of this lab. Choose on validation "
        "questions, then open it once: every further look makes its number a little less true."
    )
    if st.button("Open the test split for this merge"):
        labs.ask(lab, Point(merge=merge, seed=seed, num_questions=5000, split="test"))
    if opened:
        screen.table(screen.accuracies(tests), "tests_opened")


st.title("Merge")
lab = pick_lab()
if lab is not None:
    config = read_config(lab)
    st.caption(
        f"base `{screen.short_model(config.base)}` · start `{screen.short_model(config.start)}` · "
        f"sft `{screen.short_model(config.sft)}`"
    )
    for remark in labs.tuning_tasks(config)[1]:
        st.warning(screen.plain(remark))
    pair = rundir.read_json(lab.moments)
    if pair is None:
        words = "Reading base, start and sft, once."
        screen.live(lambda: screen.wait_for(lab.moments, labs.observed(lab), words), 0.5)
    else:
        chosen = sliders(lab, pair)
        measure(lab, chosen)
        screen.live(lambda: measured(lab), 1.5)
        with st.expander("Sweep"):
            search(lab)
        with st.expander("Use this merge"):
            screen.live(lambda: use(lab, chosen), 2)
        own = Path(config.sft).parents[1] / "merge" / "checkpoint" / "merge.json"
        if config.run_id and own.exists():
            with st.expander("Verification report of the run's own merge"):
                screen.merge_report(rundir.read_json(own))
