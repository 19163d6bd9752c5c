"""Methods compared: what their runs share, what each learns from, and what their seeds come to together."""

import json
import os
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from safetensors.torch import load_file
from streamlit.testing.v1 import AppTest
from typer.testing import CliRunner

from tests.conftest import ROOT, SMALL, wait_for_end
from workbench import arms, compare, machine, store, storefile
from workbench.cli import app
from workbench.core.statistics import crossed_bootstrap, wilson_interval
from workbench.plan import phases_of, plan
from workbench.rundir import RunDir, find_run, read_json, store_path
from workbench.settings import ConfigError, load_settings
from workbench.twins import find_twin

TINY = SMALL | {
    "iterations": 2,
    "eval_tasks": ["pocket_words"],
    "evaluate.num_samples": 0,
    "analyze.enabled": False,
}


def configs(methods, seeds=(0,), **changes):
    return compare.arms(load_settings("pocket"), TINY | changes, methods, seeds)


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    """accumulation and imm, launched together and both at an end."""
    root = tmp_path_factory.mktemp("compared")
    os.environ["WORKBENCH_HOME"] = str(root)
    try:
        run_ids = compare.launch_all(configs(["accumulation", "imm"]), root)
        for run_id in run_ids:
            assert wait_for_end(root, run_id) == ("done", None)
    finally:
        os.environ.pop("WORKBENCH_HOME")
    return root, run_ids


def test_what_the_runs_have_in_common_is_done_once(comparison):
    root, run_ids = comparison
    first, second = (find_run(root, run_id) for run_id in run_ids)
    for iteration, phase in ((0, "evaluate"), (1, "sample"), (1, "sft")):
        sources = [read_json(run.phase(iteration, phase).result).get("taken_from") for run in (first, second)]
        assert sources in (
            [None, first.run_id],
            [second.run_id, None],
        )  # they go side by side: who came first has done it
    for run, other in ((first, second), (second, first)):
        assert "taken_from" not in read_json(run.phase(2, "sample").result)
        for file in ("solutions.jsonl", "result.json", "events.jsonl"):
            text = (run.phase(1, "sample").path / file).read_text()
            assert other.run_id not in text.replace(f'"taken_from": "{other.run_id}"', "")
    ours, theirs = (load_file(run.phase(1, "sft").checkpoint / "model.safetensors") for run in (first, second))
    assert all((ours[name] == theirs[name]).all() for name in ours)
    scores = store.query(store_path(root), "SELECT * FROM evals WHERE kind = 'base' ORDER BY task, run_id")
    assert len(scores) == 4 and scores.groupby("task")["accuracy"].nunique().eq(1).all()


def test_a_phase_is_taken_over_only_where_it_is_whole_and_not_begun(comparison, tmp_path):
    root, run_ids = comparison
    copied = tmp_path / "runs"
    shutil.copytree(root / "runs", copied)
    first, second = (RunDir(copied / run_id) for run_id in run_ids)
    text = first.config.read_text()

    def twin(iteration, phase):
        place = second.phase(iteration, phase)
        found = find_twin(second, place, read_json(second.config)["config"]["group"])
        return found and found.run_id

    for place in (second.phase(1, "sample"), second.phase(1, "sft")):
        assert twin(1, place.phase) is None  # its own events are there: it is gone on with
        place.events.unlink()
        for file in (*first.path.rglob("job.json"), *second.path.rglob("job.json")):
            file.write_text(file.read_text().replace(str(root), str(tmp_path)))
        assert twin(1, place.phase) == first.run_id
    weights = first.phase(1, "sft").checkpoint / "model.safetensors"
    weights.rename(tmp_path / "weights")
    assert twin(1, "sft") is None
    (tmp_path / "weights").rename(weights)
    first.config.write_text(text.replace(read_json(first.config)["config"]["group"], "another"))
    assert twin(1, "sft") is None
    first.config.write_text(text)
    job = second.phase(1, "sft").job
    job.write_text(job.read_text().replace('"epochs": 3', '"epochs": 4'))
    assert twin(1, "sft") is None
    shutil.rmtree(first.path)
    assert twin(1, "sample") is None


def test_runs_with_other_settings_are_no_seeds_of_each_other(comparison):
    """A copy of a run counts once; one with another learning rate is another arm; what its method ignores is none."""
    root, run_ids = comparison
    frame = store.query(store_path(root), "SELECT run_id, config FROM runs ORDER BY run_id")

    def called(**changes):
        config = json.loads(frame["config"][frame["run_id"].tolist().index(run_ids[0])])
        for name, value in changes.items():
            section, _, part = name.partition("__")
            config[section] = config[section] | {part: value} if part else value
        return json.dumps(config)

    rows = {
        "copy": called(),
        "seed": called(seed=1, threads=7, merge__alpha=0.1),
        "rate": called(seed=2, sft__learning_rate=0.5),
        "lora": called(seed=3, sft__lora={"rank": 8, "dropout": 0.0}),
    }

    def named(*names):
        with pytest.MonkeyPatch.context() as patch:
            found = pd.DataFrame([(name, json.loads(rows[name])["seed"], "", rows[name]) for name in names])
            found.columns = ["run_id", "seed", "grouped", "config"]
            patch.setattr(arms.store, "query", lambda *_: found)
            return list(arms.arms_frame(store_path(root), names)["arm"])

    assert named("copy", "seed") == ["accumulation"] * 2
    assert named("copy", "rate") == ["accumulation sft.learning_rate 0.0004", "accumulation sft.learning_rate 0.5"]
    assert named("copy", "lora") == ["accumulation sft.lora None", "accumulation sft.lora rank 8"]
    one = arms.arms_frame(store_path(root), run_ids[:1])
    twice = pd.concat([one, one.assign(run_id="20000101-copy")])
    assert arms.seeds_pooled(store_path(root), twice).equals(arms.seeds_pooled(store_path(root), one))


def test_a_seed_that_failed_does_not_hide_the_others(comparison, tmp_path):
    root, run_ids = comparison
    db = shutil.copy(store_path(root), tmp_path / "workbench.duckdb")
    with storefile.connect(db, read_only=False) as connection:
        connection.execute(
            "INSERT INTO runs SELECT * REPLACE ('other' AS run_id, 1 AS seed, 'failed' AS status) FROM runs "
            "WHERE run_id = ?",
            [run_ids[0]],
        )
        for table in ("evals", "outcomes"):  # of the base alone
            connection.execute(
                f"INSERT INTO {table} SELECT * REPLACE ('other' AS run_id) FROM {table} "
                "WHERE run_id = ? AND checkpoint_id IN (SELECT checkpoint_id FROM evals WHERE kind = 'base')",
                [run_ids[0]],
            )
    one, both = (arms.arms_frame(db, names) for names in (run_ids[:1], [run_ids[0], "other"]))
    alone = arms.seeds_pooled(db, one)
    assert arms.seeds_pooled(db, both).equals(alone) and set(alone["num_seeds"]) == {1} and len(alone) > 2
    with storefile.connect(db, read_only=False) as connection:
        connection.execute("UPDATE runs SET status = 'running' WHERE run_id = 'other'")
    waiting = arms.seeds_pooled(db, both)
    assert set(waiting["kind"]) == {"base"} and set(waiting["num_seeds"]) == {2}


def test_accumulation_learns_from_earlier_iterations_too(comparison):
    root, run_ids = comparison
    mine, imm = (read_json(find_run(root, run_id).phase(2, "sft").result)["summary"] for run_id in run_ids)
    assert mine["num_sampled_earlier"] > 0 == imm["num_sampled_earlier"]


def test_seeds_of_a_method_are_pooled_with_their_interval(comparison):
    root, run_ids = comparison
    db = store_path(root)
    called = arms.arms_frame(db, run_ids)
    assert list(called.set_index("run_id").loc[run_ids, "arm"]) == ["accumulation", "imm"]
    pooled = arms.seeds_pooled(db, called)
    assert len(pooled) == 2 * (3 + 5)
    evals = store.query(db, "SELECT * FROM evals WHERE kind = 'merged' AND iteration = 2 AND domain = 'ID'").iloc[0]
    row = pooled.query("run_id == 'imm' and kind == 'merged' and iteration == 2 and domain == 'ID'").iloc[0]
    assert (row["accuracy"], row["n"], row["num_seeds"]) == (evals["accuracy"], 16, 1)
    groups = arms.groups_frame(db)
    assert list(groups["num_done"]) == [2] and set(groups["run_ids"][0]) == set(run_ids)


def test_pages_show_a_comparison(comparison, monkeypatch):
    root, _ = comparison
    monkeypatch.setenv("WORKBENCH_HOME", str(root))
    opened = AppTest.from_file(str(ROOT / "pages/accuracy.py"), default_timeout=60).run()
    assert not opened.exception and not opened.error
    assert len(opened.multiselect[0].value) == 2
    opened = AppTest.from_file(str(ROOT / "pages/solutions.py"), default_timeout=60).run()
    assert not opened.exception and not opened.error


def test_crossed_bootstrap():
    rng = np.random.default_rng(0)
    one = rng.random((1, 200)) < 0.6
    mean, low, high = crossed_bootstrap([one])
    expected = wilson_interval(int(one.sum()), 200)
    assert mean == one.mean() and (low, high) == pytest.approx(expected, abs=0.02)
    same = np.repeat(one, 3, axis=0)  # seeds that agree add nothing
    assert crossed_bootstrap([same]) == pytest.approx((mean, low, high), abs=0.01)
    apart = np.stack([np.ones(200, bool), np.zeros(200, bool), np.ones(200, bool)])
    mean, low, high = crossed_bootstrap([apart])
    assert mean == pytest.approx(2 / 3) and (low, high) == (0.0, 1.0)
    with pytest.raises(ValueError, match="the same seeds"):
        crossed_bootstrap([apart, one])


def test_each_method_is_one_setting(tmp_path):
    found = configs(["vanilla", "mixture", "accumulation", "imm", "real", "mixed"], [0, 1])
    assert len({config.group for config in found}) == 1
    assert [compare.arm_of(c) for c in found[:6]] == [
        "vanilla", "mixture", "accumulation", "imm", "real", "vanilla, 50 % real",
    ]  # fmt: skip
    assert [config.seed for config in found] == [0] * 6 + [1] * 6
    assert "sample" not in phases_of(found[4])
    jobs = [
        {(place.iteration, place.phase): job for place, job in plan(RunDir(tmp_path / "r"), config, "/base", 1)}
        for config in found[:6]
    ]
    assert [len(job[2, "sft"].earlier) for job in jobs] == [0, 1, 1, 0, 0, 0]
    assert [job[2, "sft"].earlier_share for job in jobs][1:3] == [0.5, 1.0]
    assert len({json.dumps(job[1, "sft"].model_dump(mode="json")) for job in jobs[:4]}) == 1


def test_real_and_mixed_are_held_against_samples_alone():
    def shares(methods, **changes):
        return [config.data.real_share for config in configs(methods, **changes)]

    assert shares(["vanilla", "mixed", "real"]) == [0, 0.5, 1]
    assert shares(["vanilla", "mixed"], **{"data.real_share": 0.3}) == [0, 0.3]
    assert shares(["vanilla", "imm"], **{"data.real_share": 0.3}) == [0.3, 0.3]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--methods", "vanilla,magic"], "'magic' is none; they are vanilla, mixture"),
        (["--methods", "imm", "--seeds", "0,x"], "whole numbers with commas between"),
        (["--methods", "imm,imm"], "none twice; got imm, imm"),
        (["--methods", "imm", "--set", "seed=3"], "seed cannot be --set in a comparison"),
        (["--methods", "distillation"], "needs a teacher: set teacher.model"),
        (["--methods", "imm", "--set", "train_task=nowhere"], "imm, seed 0: no task 'nowhere'"),
    ],
)
def test_what_cannot_be_compared_is_one_sentence_and_nothing_starts(home, arguments, said):
    result = CliRunner().invoke(app, ["compare", "--preset", "pocket", *arguments])
    assert said in str(result.exception) and isinstance(result.exception, ConfigError | ValueError)
    assert not list(home.glob("runs/*/config.json"))


def test_what_a_comparison_takes_is_said_before_it_starts(home, monkeypatch):
    monkeypatch.setattr(machine, "_all_gpus", lambda: ())
    words = ["compare", "--preset", "llama2-7b-gsm8k", "--methods", "vanilla,imm", "--seeds", "0,1", "--dry-run"]
    right, wrong = (CliRunner().invoke(app, words + more) for more in ([], ["--set", "train_task=nowhere"]))
    assert right.exit_code == 0, right.output
    rows = [re.findall(r"[\w.]+", line) for line in right.output.splitlines() if re.search(r"^ *(vanilla|imm) ", line)]
    assert [row[:2] for row in rows] == [["vanilla", "0"], ["imm", "0"], ["vanilla", "1"], ["imm", "1"]]
    assert all(float(hours) > 1 and float(size) > 10 for _, _, hours, size in rows)
    assert "sft.zero=3  (default 0; preset llama2-7b-gsm8k)" in right.output and "method=" not in right.output
    assert wrong.exit_code == 2 and "imm, seed 1): no task 'nowhere'" in wrong.output
    assert not list(home.glob("runs/*/config.json"))


def test_a_comparison_without_a_preset_has_the_documented_defaults(home):
    words = ["--methods", "vanilla", "--set", "model=Qwen/Qwen2.5-0.5B-Instruct", "--set", "train_task=gsm8k"]
    output = CliRunner().invoke(app, ["compare", *words, "--dry-run"]).output
    said = output.partition("Settings: no preset.")[2].splitlines()[1:4]
    assert [line.startswith("  ") for line in said] == [True, True, False]


def test_a_run_on_real_data_samples_nothing(home):
    """Appendix C: the train split's own solutions, in a comparison of its own."""
    (run_id,) = compare.launch_all(configs(["real"], iterations=1, **{"sft.epochs": 1}), home)
    assert wait_for_end(home, run_id) == ("done", None)
    run = find_run(home, run_id)
    assert not run.phase(1, "sample").path.exists()
    assert read_json(run.phase(1, "sft").result)["summary"]["num_worked"] == 24
