"""Set up a run: choose, see at once what is wrong with it and which command does the same, start it."""

from collections.abc import Callable
from typing import Any

import streamlit as st

from workbench import checks, chosen_runs, compare, origins, rundir, screen, solutions
from workbench.config import LoraConfig, RunConfig
from workbench.settings import REQUIRED, as_text, changed, command, load_preset, preset_names
from workbench.tasks import TASKS

HOME = rundir.home()
NEW = {"accept_new_options": True}
NO_PRESET = "none: the documented defaults"
BARE = RunConfig.model_construct(model="", train_task="")  # the defaults, and what is required still to be given
METHODS = {
    "vanilla": "learn from the last kept solutions (STaR)",
    "mixture": "and from a share of the earlier ones",
    "accumulation": "and from all earlier ones",
    "imm": "merge every fine-tuned checkpoint back towards the base",
}


PLACES = {"machine": "this machine", "ray": "Ray cluster"}


Key = Callable[[str], dict[str, Any]]


def ask(preset: str | None, shipped: RunConfig) -> dict[str, Any]:
    """The form; every value starts as the preset has it. What is required and not given yet is left out."""

    def key(name: str) -> dict[str, Any]:
        return {"key": f"{preset}_{name}"}

    chosen: dict[str, Any] = {}
    known = list(TASKS)
    chosen["model"] = st.text_input(
        "Base model",
        shipped.model,
        placeholder="a directory, or a hub name",
        help="A directory or a Hugging Face hub name.",
        **key("model"),
    )
    chosen["trust_remote_code"] = screen.ask_trust(shipped.trust_remote_code, f"{preset}_trust")
    chosen["train_task"] = st.selectbox(
        "Train task (its test set is ID)",
        known,
        index=known.index(shipped.train_task) if shipped.train_task else None,
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
        list(METHODS),
        default=shipped.method,
        required=True,
        help="; ".join(f"**{name}**: {words}" for name, words in METHODS.items()),
        **key("method"),
    )
    left, right = st.columns(2)
    chosen["on"] = left.segmented_control(
        "Where", list(PLACES), default=shipped.on, format_func=PLACES.get, required=True, **key("on")
    )
    if chosen["on"] == "ray":
        chosen["ray.address"] = right.text_input(
            "Cluster",
            shipped.ray.address,
            help="auto: the cluster that this machine is part of; or another's dashboard, as in http://head:8265.",
            **key("address"),
        )
    if chosen["method"] == "imm":
        alpha, p = shipped.merge.alpha, shipped.merge.drop_rate
        chosen["alpha"] = left.slider("alpha, weight of the base", 0.0, 1.0, alpha, 0.05, **key("alpha"))
        chosen["drop_rate"] = right.slider("p, share of changes dropped", 0.0, 0.99, p, 0.01, **key("p"))
    if chosen["method"] == "mixture":
        share = shipped.data.mixture_share
        chosen["data.mixture_share"] = left.slider(
            "Share of the earlier solutions", 0.0, 1.0, share, 0.05, **key("mix")
        )
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
    chosen |= ask_training(shipped, key) | ask_sampling(shipped, key)
    return {name: value for name, value in chosen.items() if value or name not in REQUIRED}


def ask_sampling(shipped: RunConfig, key: Key) -> dict[str, Any]:
    """Prompts, sampling, evaluation."""
    chosen: dict[str, Any] = {}
    with st.expander("Prompts, sampling and evaluation"):
        left, right = st.columns(2)
        chosen["prompt.format"] = left.selectbox(
            "Prompt format",
            ["plain", "chat"],
            index=["plain", "chat"].index(shipped.prompt.format),
            help="chat: the chat template of an instruct model.",
            **key("format"),
        )
        chosen["sample.few_shot"] = right.number_input(
            "Worked examples before each question", 0, None, shipped.sample.few_shot, **key("few_shot")
        )
        chosen["temperatures"] = left.text_input(
            "Temperatures", ", ".join(f"{t:g}" for t in shipped.sample.temperatures), **key("temperatures")
        )
        chosen["num_samples"] = right.number_input(
            "Solutions per question and temperature", 1, None, shipped.sample.num_samples, **key("samples")
        )
        chosen["evaluate.num_samples"] = left.number_input(
            "Sampled answers for pass@k (M; 0: none)", 0, 1024, shipped.evaluate.num_samples, **key("passes")
        )
        kinds = ["auto", "transformers", "vllm"]
        chosen["engine.kind"] = right.selectbox(
            "Engine", kinds, index=kinds.index(shipped.engine.kind), **key("engine")
        )
        chosen["stop_if_worse"] = st.checkbox(
            "Stop after iteration 1 where fine-tuning made it worse in domain",
            shipped.stop_if_worse,
            help="A model that its own solutions make worse may not be able to improve itself (paper, appendix D). "
            "Resume goes on in spite of it.",
            **key("stop_if_worse"),
        )
    return chosen


def ask_training(shipped: RunConfig, key: Key) -> dict[str, Any]:
    """What is learned from, and how."""
    chosen: dict[str, Any] = {}
    sft = shipped.sft
    with st.expander("Fine-tuning"):
        left, right = st.columns(2)
        chosen["data.real_share"] = left.slider(
            "Share of real solutions",
            0.0,
            1.0,
            shipped.data.real_share,
            0.05,
            help="Real: the train split's own worked solutions. 1: they alone, nothing is sampled (appendix C).",
            **key("real"),
        )
        chosen["sft.batching"] = right.selectbox(
            "Batches",
            ["length", "packed"],
            index=["length", "packed"].index(sft.batching),
            help="length: examples of like length, padded; packed: laid end to end, without padding.",
            **key("batching"),
        )
        chosen["sft.batch_size"] = left.number_input("Examples per pass", 1, None, sft.batch_size, **key("batch"))
        chosen["sft.accumulation"] = right.number_input(
            "Passes per step", 1, None, sft.accumulation, **key("passes_step")
        )
        adapters = left.toggle("LoRA adapters", sft.lora is not None, **key("lora"))
        lora = sft.lora or LoraConfig()
        chosen["sft.lora"] = None
        if adapters:
            rank = left.number_input("Rank", 1, 1024, lora.rank, **key("rank"))
            alpha = right.number_input("LoRA alpha", 1.0, None, lora.alpha, **key("lora_alpha"))
            chosen["sft.lora"] = lora.model_dump(mode="json") | {"rank": rank, "alpha": alpha}
        chosen["sft.gradient_checkpointing"] = right.toggle(
            "Gradient checkpointing", sft.gradient_checkpointing, **key("checkpointing")
        )
        chosen["sft.zero"] = left.selectbox(
            "DeepSpeed ZeRO",
            [0, 2, 3],
            index=[0, 2, 3].index(sft.zero),
            format_func=lambda stage: f"ZeRO-{stage}" if stage else "off",
            **key("zero"),
        )
        kinds = ["none", "optimizer", "all"]
        chosen["sft.offload"] = right.selectbox(
            "Offload to the host", kinds, index=kinds.index(sft.offload), **key("offload")
        )
        chosen["teacher.model"] = left.text_input(
            "Teacher model", shipped.teacher.model, placeholder="none: the model samples itself", **key("teacher")
        ) or None  # fmt: skip
        chosen["teacher.url"] = right.text_input(
            "Teacher's server", shipped.teacher.url, placeholder="none: run here", **key("teacher_url")
        ) or None  # fmt: skip
        if chosen["teacher.model"] and not chosen["teacher.url"]:
            trusted = shipped.teacher.trust_remote_code
            chosen["teacher.trust_remote_code"] = screen.ask_trust(trusted, **key("trust_teacher"), whose=" (teacher)")
    return chosen


def ask_comparison(preset: str | None, chosen: dict[str, Any]) -> None:
    """The same settings with several methods and seeds, each a run."""
    with st.expander("Compare methods on the same seeds and samples"):
        default = ["vanilla", "mixture", "accumulation", "imm"]
        methods = st.multiselect("Methods", list(compare.ARMS), default=default)
        seeds = st.text_input("Seeds", str(chosen["seed"]), help="Whole numbers with commas between, as in 0, 1, 2.")
        configs = screen.attempt(lambda: compare.arms(load_preset(preset), chosen, methods, compare.numbers(seeds)))
        if st.button(f"Start {len(configs or [])} runs", disabled=not configs):
            started = screen.attempt(lambda: compare.launch_all(configs, HOME, once_s=screen.DOUBLE_CLICK_S))
            if started:
                chosen_runs.watch(started, "accuracy")


def in_words(row: dict[str, Any]) -> str:
    """A setting, its value, and its default where it has one."""
    words = f"{row['setting']}: {screen.plain(as_text(row['value']))}"
    return words if row["setting"] in REQUIRED else f"{words}, default {screen.plain(as_text(row['default']))}"


def show_settings(preset: str | None, config: RunConfig, chosen: dict[str, Any]) -> None:
    """Which preset, what differs from the documented defaults and where that comes from, and the command for it."""
    said = origins.told(config, preset, changed(preset, config, list(chosen)))
    for note in said["notes"]:
        st.warning(screen.plain(note))
    st.caption("The same from a terminal:")
    st.code(command(preset, config, list(chosen)), language="bash", wrap_lines=True)
    count = len(said["settings"])
    with st.expander(f"{said['settings_from'].capitalize()}: the documented defaults but for {count} settings"):
        for origin in dict.fromkeys(row["origin"] for row in said["settings"]):
            st.caption("Set here:" if origin == "--set" else f"From {origin}:")
            st.caption("\n".join(f"- {in_words(row)}" for row in said["settings"] if row["origin"] == origin))


st.title("New run")
form, side = st.columns([3, 2], gap="large")
with form:
    presets = [NO_PRESET, *preset_names()]
    named = st.selectbox("Preset", presets, index=presets.index("pocket"))
    preset = None if named == NO_PRESET else named
    chosen = ask(preset, screen.preset_config(preset) if preset else BARE)
with side:
    st.subheader("Check")
    config = None
    if chosen.keys() >= set(REQUIRED):
        config = screen.attempt(lambda: screen.preset_config(preset, chosen))
    else:
        st.info("Give a base model and a train task.")
    problems = checks.check(config, HOME) if config else []
    for problem in problems:
        st.error(screen.plain(problem))
    if config and not problems:
        st.success("Ready to start.")
        for remark in checks.remarks(config):
            st.warning(screen.plain(remark))
    if config:
        show_settings(preset, config, chosen)
        with st.expander("What the model is asked, exactly as sent"):
            for name, text in screen.attempt(lambda: solutions.preview(config)) or []:
                st.caption(name)
                st.code(text, language=None, wrap_lines=True, height="content" if len(text) < 1500 else 300)
        with st.expander("All settings"):
            st.json(config.model_dump(mode="json"))
    if st.button("Start the run", type="primary", disabled=not config or bool(problems)):
        screen.launch_and_watch(config, HOME)
    if config:
        ask_comparison(preset, chosen)
