"""The command, as a person types it."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from workbench.rundir import all_runs

POCKET = ROOT / "data" / "pocket"
COMMAND = Path(sys.executable).with_name("workbench")


def workbench(*words, **options):
    return subprocess.run([COMMAND, *map(str, words)], capture_output=True, text=True, timeout=120, **options)


def test_an_empty_home_says_how_to_start(home):
    done = workbench("list")
    assert done.returncode == 0 and "workbench run --preset pocket" in done.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "--set", "alpha=2"], "merge.alpha: Input should be less than or equal to 1, got 2"),
        (
            ["run"],
            "Error: model and train_task must be given, there is no default: --set model=... --set train_task=...",
        ),
        (["run", "--set", "model=x"], "Error: train_task must be given, there is no default: --set train_task=..., or"),
        (["compare", "--methods", "imm"], "or take a preset (--preset pocket tries everything out)"),
        (["run", "--preset", "nope"], "no preset or file 'nope'"),
        (["run", "--preset", "pocket", "--set", "model=./missing"], "no model directory './missing'"),
        (["show", "no-such-run"], "no run 'no-such-run'"),
        (["show", "../../etc"], "no run '../../etc'"),
        (["stop", "x"], "no run 'x'"),
        (["store", "sql", "DROP TABLE runs"], "read-only"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(home, words, said):
    done = workbench(*words)
    assert done.returncode == 2
    assert said in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_a_run_that_starts_says_which_values_are_not_the_defaults(home):
    """Beside its output, which with --detach is the run's id alone."""
    assert workbench("queue", "pause").returncode == 0
    done = workbench("run", "--preset", "pocket", "--detach", "--set", "alpha=0.3", "--set", "threads=1")
    assert done.returncode == 0, done.stderr
    assert [done.stdout.strip()] == [run.run_id for run in all_runs(home)]
    said = done.stderr.splitlines()
    assert said[0].startswith("Settings: preset pocket. The documented defaults hold")
    assert "  sft.learning_rate=0.0004  (default 2e-05; preset pocket)" in said
    assert "  merge.alpha=0.3  (default 0.5; --set)" in said
    assert not any(line.startswith("  sft.epochs") for line in said)


def test_show_and_sql_speak_json(finished_run, monkeypatch):
    monkeypatch.setenv("WORKBENCH_HOME", str(finished_run.path.parents[1]))
    shown = json.loads(workbench("show", finished_run.run_id, "--json").stdout)
    assert shown["status"] == "done" and len(shown["evals"]) == 12
    rows = json.loads(workbench("store", "sql", "SELECT kind FROM checkpoints ORDER BY 1", "--json").stdout)
    assert [row["kind"] for row in rows] == ["base", "merged", "sft"]
    assert finished_run.run_id in workbench("list").stdout
    table = workbench("show", finished_run.run_id).stdout
    assert "Merge 1" in table and "n = 16" in table


def test_merge_from_the_command(home, tmp_path):
    out = tmp_path / "out"
    words = ["merge", "--base", POCKET / "model", "--sft", POCKET / "model", "--out", out, "--alpha", 0.5]
    done = workbench(*words)
    assert done.returncode == 0, done.stderr
    assert "identical to the base" in done.stdout
    again = workbench(*words)
    assert again.returncode == 2 and "exists and is not empty" in " ".join(again.stderr.split())


def test_doctor_finds_the_cpu_path_usable(home):
    done = workbench("doctor")
    assert done.returncode == 0
    assert "engine transformers" in done.stdout


def test_a_port_in_use_is_one_sentence(home):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = workbench("app", "--port", taken.getsockname()[1])
    assert done.returncode == 2 and "is in use; choose another" in " ".join(done.stderr.split())
