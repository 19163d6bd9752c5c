"""Presets of the paper's settings, and the dry run that says what each would take: on any machine, without weights."""

import json
import re
import shlex

import pytest
from typer.testing import CliRunner

from tests.conftest import DATASETS, ROOT, needs_datasets
from workbench import checks, cli, machine
from workbench.machine import Gpu
from workbench.settings import PRESETS, build_config, facts, load_settings, parse_assignments, preset_names

PAPER = [f"{model}-{task}" for model in ("qwen2.5-0.5b", "qwen2.5-1.5b", "llama2-7b") for task in ("gsm8k", "math")]
DISTILLED = ["distill-qwen2.5-0.5b", "distill-qwen2.5-1.5b"]
A100 = Gpu("NVIDIA A100-SXM4-80GB", 79.3)


@pytest.fixture(autouse=True)
def bare(home, monkeypatch):
    """A machine with no GPU, no data sets and no hub."""
    monkeypatch.setattr(machine, "_all_gpus", lambda: ())
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def dry_run(*words):
    """(exit code, the report) of a dry run by the real command."""
    done = CliRunner().invoke(cli.app, ["run", *words, "--dry-run", "--json"])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, json.loads(done.stdout)


def test_every_setting_of_the_paper_is_shipped():
    assert set(PAPER + DISTILLED) == set(preset_names()) - {"pocket"}


@pytest.mark.parametrize("name", PAPER + DISTILLED)
def test_a_preset_has_the_papers_values_and_says_beside_a_value_what_is_not_its_word(name):
    text = (PRESETS / f"{name}.toml").read_text()
    assert text.splitlines()[0] == f"# workbench run --preset {name}"
    assert "could not be read" in text
    lines = text.splitlines()
    for setting in ("drop_rate", "num_samples", "max_new_tokens", "format", "schedule", "weight_decay", "num_examples"):
        for number in [n for n, line in enumerate(lines) if line.startswith(f"{setting} = ")]:
            beside = lines[number].partition("#")[2] or lines[number - 1]
            assert re.search("(?i)not read|states no|not stated", beside), lines[number]
    assert name in PAPER or "WHICH TEACHER AND WHICH TWO STUDENTS" in text
    config = build_config(load_settings(name))
    assert config.method == "imm" and config.iterations == 3 and config.merge.alpha == 0.5
    assert config.sample.temperatures == (0.2, 0.4, 0.6) and config.sample.few_shot == 10
    sft = config.sft
    assert (sft.batch_size, sft.accumulation, sft.learning_rate, sft.epochs) == (4, 4, 2e-5, 3)
    assert (sft.warmup_ratio, sft.zero, sft.lora) == (0.03, 3, None)
    assert config.eval_tasks[:2] == ("mawps", "sat_math")
    assert config.train_task == (name.split("-")[-1] if name in PAPER else "gsm8k")
    assert config.model in facts("models")
    assert bool(config.teacher.model) == (name in DISTILLED)


@pytest.mark.parametrize("name", PAPER + DISTILLED)
def test_a_dry_run_needs_neither_weights_nor_data_nor_network(name, home):
    code, said = dry_run("--preset", name)
    assert code == 0 and said["problems"] == []
    assert said["phases"][:4] == ["0 evaluate", "1 sample", "1 sft", "1 merge"] and len(said["phases"]) == 16
    before = " ".join(said["before_launch"])
    assert "comes from the hub at launch" in before and "the rows of mawps are not on the hub" in before
    found = said["estimate"]
    assert set(found["phases"]) == {"sample", "sft", "merge", "evaluate", "analyze"}
    assert found["phases"]["sft"]["optimizer_gib"] == pytest.approx(12 * said["model"]["num_parameters"] / 2**30)
    by = found["sft_gib_by_processes"]
    assert by["1"] > by["2"] > by["8"] > 0
    assert found["gpu_hours"] > 0 and found["disk_gb"]["total"] > 5
    assert {row["setting"] for row in said["unread"]} >= {"merge.drop_rate", "sample.num_samples", "eval_tasks"}
    assert any(row["setting"] == "teacher.model" for row in said["unread"]) == (name in DISTILLED)
    assert not list(home.glob("runs/*"))


def test_people_are_told_the_same():
    done = CliRunner().invoke(cli.app, ["run", "--preset", "llama2-7b-math", "--dry-run"])
    words = " ".join(done.stdout.split())
    assert (
        done.exit_code == 0 and "6,738,415,616 parameters" in words and "not the paper's word: merge.drop_rate" in words
    )
    assert "lower sample.few_shot" in words and "Not on this machine: phase sft needs" in words
    assert "was not checked against a GPU" in words


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--set", "eval_tasks=gsm9k"], "no task 'gsm9k'"),
        (["--set", "num_questions=99999"], "gsm8k has 7463 train questions"),
        (["--set", "model=./missing"], "no model directory './missing'"),
        (["--set", "analyze.task=gsm9k"], "no task 'gsm9k'"),
    ],
)
def test_what_is_wrong_is_an_error(words, said):
    code, found = dry_run("--preset", "qwen2.5-0.5b-gsm8k", *words)
    assert code == 2 and any(said in problem for problem in found["problems"])


def test_a_machine_that_is_meant_and_too_small_is_an_error_with_its_cure(monkeypatch):
    monkeypatch.setattr("workbench.dry_run.this_machine", lambda root: machine.Machine((A100,), 400.0, 1000.0))
    code, found = dry_run("--preset", "llama2-7b-gsm8k", "--set", "engine.kind=transformers")
    assert code == 2
    sft = next(problem for problem in found["problems"] if "phase sft" in problem)
    assert "each GPU gives it 79.3 GiB" in sft and "set sft.zero=3 and sft.offload=" in sft
    sample = next(problem for problem in found["problems"] if "phase sample" in problem)
    assert "set engine.batch_size=" in sample
    monkeypatch.setattr("workbench.dry_run.this_machine", lambda root: machine.Machine((), 8.0, 1000.0))
    code, found = dry_run("--preset", "pocket", "--set", "sft.batch_size=4096")
    assert code == 2 and "set sft.batch_size=" in found["problems"][0]


def test_eight_gpus_are_enough_for_the_largest_preset(monkeypatch):
    monkeypatch.setattr("workbench.dry_run.this_machine", lambda root: machine.Machine((A100,) * 8, 400.0, 1000.0))
    code, found = dry_run("--preset", "llama2-7b-math", "--set", "engine.batch_size=32")
    assert code == 0 and found["problems"] == [] and found["machine"]["is_meant"]


def given(found):
    """What a plan says of the settings that are not the defaults: value, default and where from, by name."""
    return {row["setting"]: (row["value"], row["default"], row["origin"]) for row in found["settings"]}


def test_without_a_preset_the_documented_defaults_hold():
    words = ["--set", f"model={ROOT / 'data' / 'pocket' / 'model'}", "--set", "train_task=pocket_steps"]
    code, found = dry_run(*words, "--set", "sample.few_shot=10", "--set", "alpha=0.3")
    assert code == 0 and found["preset"] is None and found["settings_from"] == "no preset"
    assert given(found) == {
        "model": (str(ROOT / "data" / "pocket" / "model"), None, "--set"),
        "train_task": ("pocket_steps", None, "--set"),
        "merge.alpha": (0.3, 0.5, "--set"),
    }
    assert not any("preset" in note for note in found["notes"])


def test_a_plan_says_what_comes_from_a_preset_and_what_was_set():
    words = ["--set", "model=Qwen/Qwen2.5-0.5B-Instruct", "--set", "sft.lora.rank=8", "--set", "num_questions=1000"]
    code, found = dry_run("--preset", "pocket", *words, "--on", "machine")
    rows = given(found)
    assert found["preset"] == "pocket" and rows["model"] == ("Qwen/Qwen2.5-0.5B-Instruct", None, "--set")
    assert rows["sft.learning_rate"] == (4e-4, 2e-5, "preset pocket") and rows["sft.lora"][2] == "--set"
    assert rows["evaluate.max_new_tokens"] == (64, 512, "preset pocket") and rows["num_questions"][2] == "--set"
    assert "preset pocket is made for data/pocket/model, and its values may not suit Qwen/" in found["notes"][0]
    assert given(dry_run("--preset", "pocket")[1]).keys() == rows.keys() - {"sft.lora"}
    assert dry_run("--preset", "pocket")[1]["notes"] == []


def test_a_file_of_settings_is_named_and_a_section_that_was_set_counts_as_set(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('train_task = "gsm8k"\n[sft]\nepochs = 1\n[sample]\nfew_shot = 3\n')
    code, found = dry_run("--config", str(file), "--set", "model=a/b", "--set", 'sample={"few_shot": 4}')
    rows = given(found)
    assert (found["preset"], rows["sft.epochs"]) == (None, (1, 3, f"file {file}"))
    assert (rows["sample.few_shot"], rows["model"][2]) == ((4, 10, "--set"), "--set")


def test_the_lines_of_a_plan_are_what_set_takes():
    done = CliRunner().invoke(cli.app, ["run", "--preset", "qwen2.5-0.5b-math", "--dry-run"])
    lines = done.stdout.partition("Settings: preset qwen2.5-0.5b-math.")[2].splitlines()[1:]
    lines = [line.strip() for line in lines[: next(n for n, line in enumerate(lines) if line[:2] != "  ")]]
    words = [shlex.split(line.partition("  (")[0])[0] for line in lines]
    config = build_config(load_settings("qwen2.5-0.5b-math"))
    assert build_config({}, parse_assignments(words)) == config and "sft.zero=3" in words and "epochs" not in str(words)


def test_the_pocket_run_passes_on_this_machine():
    code, found = dry_run("--preset", "pocket")
    assert code == 0 and found["machine"]["is_meant"] and found["before_launch"] == []


@needs_datasets
def test_rows_that_are_here_are_counted():
    code, found = dry_run("--preset", "qwen2.5-1.5b-math", "--set", f"datasets={DATASETS}")
    here = {(task["task"], task["domain"]): task["num_questions"] for task in found["tasks"] if task["is_here"]}
    assert code == 0 and here["math", "train"] == 7498 and here["sat_math", "OOD"] == 32
    to_do = [said for said in found["before_launch"] if "DeepSpeed" not in said]  # an extra, not everywhere
    assert len(to_do) == 1 and "Qwen/Qwen2.5-1.5B-Instruct" in to_do[0]


def test_json_goes_with_a_dry_run():
    done = CliRunner().invoke(cli.app, ["run", "--json"])
    assert isinstance(done.exception, ValueError) and "--dry-run" in str(done.exception)


def test_a_part_of_a_test_set_that_stands_by_subject_is_pointed_out():
    config = build_config(load_settings("qwen2.5-0.5b-math"), {"eval_questions": 500})
    assert any("math, test" in remark and "first 500" in remark for remark in checks.remarks(config, missing_ok=True))
    whole = build_config(load_settings("qwen2.5-0.5b-math"))
    assert not any("takes the first" in remark for remark in checks.remarks(whole, missing_ok=True))
