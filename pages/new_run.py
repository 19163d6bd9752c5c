"""Set up a run: choose, see at once what is wrong with it and which command does the same, start it."""

from typing import Any

import streamlit as st

from workbench import launch, rundir, screen
from workbench.config import RunConfig
from workbench.settings import command, preset_names
from workbench.tasks import TASKS

HOME = rundir.home()
NEW = {"accept_new_options": True}


def ask(preset: str, shipped: RunConfig) -> dict[str, Any]:
    """The form; every value starts as the preset has it."""

    def key(name: str) -> dict[str, Any]:
        return {"key": f"{preset}_{name}"}

    chosen: dict[str, Any] = {}
    known = list(TASKS)
    chosen["model"] = st.text_input(
        "Base model", shipped.model, help="A directory or a Hugging Face hub name.", **key("model")
    )
    chosen["train_task"] = st.selectbox(
        "Train task (its test set is ID)",
        known,
        index=known.index(shipped.train_task),
        help="A name, or a directory with train.jsonl and test.jsonl: type its path.",
        **NEW,
        **key("train"),
    )
    chosen["eval_tasks"] = st.multiselect(
        "Other tasks (OOD)",
        known,
        default=list(shipped.eval_tasks),
        help="Names, directories with test.jsonl, or JSON Lines files: type the path.",
        **NEW,
        **key("eval"),
    )
    chosen["method"] = st.segmented_control(
        "Method",
        ["imm", "vanilla"],
        default=shipped.method,
        required=True,
        help="imm merges every fine-tuned checkpoint back towards the base; vanilla (STaR) does not.",
        **key("method"),
    )
    left, right = st.columns(2)
    if chosen["method"] == "imm":
        alpha, p = shipped.merge.alpha, shipped.merge.drop_rate
        chosen["alpha"] = left.slider("alpha, weight of the base", 0.0, 1.0, alpha, 0.05, **key("alpha"))
        chosen["drop_rate"] = right.slider("p, share of changes dropped", 0.0, 0.99, p, 0.01, **key("p"))
    chosen["iterations"] = left.number_input("Iterations", 1, 100, shipped.iterations, **key("iterations"))
    chosen["seed"] = right.number_input("Seed", 0, 2**32 - 1, shipped.seed, **key("seed"))
    chosen["num_questions"] = left.number_input(
        "Train questions", 1, None, shipped.num_questions, placeholder="all", **key("questions")
    )
    chosen["eval_questions"] = right.number_input(
        "Test questions per task", 1, None, shipped.evaluate.num_questions, placeholder="all", **key("test")
    )
    chosen["learning_rate"] = left.number_input(
        "Learning rate", value=shipped.sft.learning_rate, format="%g", **key("rate")
    )
    chosen["epochs"] = right.number_input("Epochs", 1, None, shipped.sft.epochs, **key("epochs"))
    return chosen


st.title("New run")
form, side = st.columns([3, 2], gap="large")
with form:
    preset = st.selectbox("Preset", preset_names(), index=preset_names().index("pocket"))
    chosen = ask(preset, screen.preset_config(preset))
with side:
    st.subheader("Check")
    config = screen.attempt(lambda: screen.preset_config(preset, chosen))
    problems = launch.check(config, HOME) if config else []
    for problem in problems:
        st.error(problem)
    if config and not problems:
        st.success("Ready to start.")
        for remark in launch.remarks(config):
            st.warning(remark)
    if config:
        st.caption("The same from a terminal:")
        st.code(command(preset, config, list(chosen)), language="bash", wrap_lines=True)
        with st.expander("All settings"):
            st.json(config.model_dump(mode="json"))
    if st.button("Start the run", type="primary", disabled=not config or bool(problems)):
        screen.launch_and_watch(config, HOME)
