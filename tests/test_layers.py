"""The analysis of layers as people use it: a run's phase, the command, any two checkpoints, the page."""

import io
import json
import shutil
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout

import pytest
from streamlit.testing.v1 import AppTest

from tests.conftest import ROOT, wait_for_end, wait_until
from workbench import arms, charts, comparisons, launch, layer_charts, store
from workbench.cli import main
from workbench.config import AnalyzeConfig
from workbench.jobs import TaskSource
from workbench.rundir import RunDir, read_json, store_path, write_json

POCKET = ROOT / "data" / "pocket" / "model"


@pytest.fixture
def copied(finished_run, home):
    """The finished run in a home of its own, to change."""
    shutil.copytree(finished_run.path, home / "runs" / finished_run.run_id)
    return RunDir(home / "runs" / finished_run.run_id)


def workbench(*words):
    """The command as it is typed, in this process, which has imported what takes it seconds to import."""
    out, error = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(error):
        patch.setattr(sys, "argv", ["workbench", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
    return subprocess.CompletedProcess(words, ended.value.code or 0, out.getvalue(), error.getvalue())


def test_a_run_is_analysed_and_recorded(finished_run):
    db = store_path(finished_run.path.parents[1])
    importance = store.importance_frame(db, finished_run.run_id)
    assert set(importance["text_set"]) == {"reasoning", "plain"} and set(importance["layer"]) == set(range(6))
    assert (importance["num_examples"] == 16).all()
    assert ((importance["share_low"] <= importance["share"]) & (importance["share"] <= importance["share_high"])).all()
    change = store.change_frame(db, [finished_run.run_id])
    whole = change[change["module"] == "all"].set_index(["kind", "compared_to", "layer"])["change"]
    assert (whole["sft"]["base"] == whole["sft"]["start"]).all(), "the first iteration starts from the base"
    assert (whole["merged"]["base"] < whole["sft"]["base"]).all(), "alpha 0.5 goes half of the way back"
    indices = store.superficiality_frame(db, finished_run.run_id)
    assert len(indices) == 2 * 2 * 2 and indices["value"].between(-1, 1).all()
    figure = layer_charts.together(importance, change[change["compared_to"] == "base"])
    assert sum(next(t for t in figure.data if t.name == "importance, reasoning").y) == pytest.approx(100)
    gains = store.gains_frame(db, finished_run.run_id)
    evals = store.evals_frame(db, finished_run.run_id).set_index(["kind", "task"])["accuracy"]
    for row in gains.itertuples():
        assert row.gain == pytest.approx(evals[row.kind, row.task] - evals["base", row.task])


def test_a_failed_analysis_ends_no_run_early_and_resume_repeats_it(copied, home):
    place = copied.phase(1, "analyze")
    shutil.rmtree(place.path)
    later = copied.phase(1, "evaluate")
    shutil.rmtree(later.path)
    written = read_json(copied.config)
    written["config"]["analyze"]["max_length"] = 16
    written["config"]["iterations"] = 1
    write_json(copied.config, written)
    write_json(copied.status, read_json(copied.status) | {"status": "stopped"})
    launch.resume(home, copied.run_id)
    status, error = wait_for_end(home, copied.run_id)
    assert status == "failed" and "Everything but an analysis is done" in error
    assert "raise analyze.max_length (16 tokens)" in error and later.result.exists()
    written["config"]["analyze"]["max_length"] = 128
    write_json(copied.config, written)
    launch.resume(home, copied.run_id)
    assert wait_for_end(home, copied.run_id) == ("done", None) and place.result.exists()


def test_the_command_measures_and_compares(finished_run, tmp_path):
    kept = tmp_path / "kept"
    sft = finished_run.phase(1, "sft").checkpoint
    words = ("importance", POCKET, "--task", "pocket_steps", "--set", "num_examples=8", "--out", kept)
    done = workbench("layers", *words, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [about["num_examples"] for about in found["sets"]] == [8, 8]
    compared = json.loads(workbench("layers", "change", POCKET, sft, "--importance", kept, "--json").stdout)
    ours = store.change_frame(store_path(finished_run.path.parents[1]), [finished_run.run_id])
    ours = ours[(ours["kind"] == "sft") & (ours["compared_to"] == "base")].set_index(["layer", "module"])["change"]
    for row in compared["changes"]:
        place = (-1 if row["layer"] is None else row["layer"], row["module"])
        assert ours[place] == pytest.approx(row["change"])
    assert [index["num_layers"] for index in compared["indices"]] == [6, 6]
    merged = workbench("merge", "--base", POCKET, "--sft", sft, "--set", "profile=importance", "--importance", kept,
                       "--out", tmp_path / "out")  # fmt: skip
    assert merged.returncode == 0, merged.stderr
    recipe = read_json(tmp_path / "out" / "merge.json")["recipe"]
    total = [
        row["importance"] for row in found["importance"] if row["text_set"] == "reasoning" and row["module"] == "all"
    ]
    expected = [min(1.0, 0.5 * value * 6 / sum(total)) for value in total]
    assert recipe["layer_alphas"] == pytest.approx(expected)


def test_a_directory_keeps_the_importance_of_one_model_with_one_setting(finished_run, tmp_path):
    kept, sft = tmp_path / "kept", finished_run.phase(1, "sft").checkpoint
    words = ["--task", "pocket_steps", "--set", "num_examples=4", "--out", kept, "--json"]
    first = workbench("layers", "importance", POCKET, *words)
    assert first.returncode == 0, first.stderr
    assert workbench("layers", "importance", POCKET, *words).stdout.split('"seconds"')[0] in first.stdout
    for other in (
        ["importance", sft, *words],
        ["importance", POCKET, *words, "--set", "order=second"],
        ["importance", POCKET, *words, "--set", "num_examples=5"],
        ["importance", POCKET, *words, "--seed", "1"],
    ):
        done = workbench("layers", *other)
        assert done.returncode == 2 and "Traceback" not in done.stderr
        said = " ".join(done.stderr.split())
        assert f"holds the importance of {POCKET} with other settings" in said and "give another --out" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["importance", "nowhere"], "nowhere"),
        (["importance", POCKET, "--task", "asdiv"], "asdiv"),
        (["importance", POCKET, "--text", "./no.txt"], "no text file"),
        (["importance", POCKET, "--set", "order=third"], "order"),
        (["change", POCKET, "nowhere"], "nowhere"),
        (["change", POCKET, POCKET, "--importance", "/"], "layers importance MODEL --out"),
        (["importance", POCKET, "--task", "pocket_steps", "--set", "max_length=16"], "raise analyze.max_length"),
    ],
)
def test_a_mistake_is_one_sentence(home, words, message):
    done = workbench("layers", *words)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr


def test_any_two_checkpoints_in_the_background_and_on_the_page(finished_run, home):
    sft = str(finished_run.phase(1, "sft").checkpoint)
    job = comparisons.analysis_job(
        str(POCKET), sft, TaskSource(task="pocket_steps"), None, AnalyzeConfig(num_examples=8)
    )
    place = comparisons.ask(home, job)
    assert comparisons.ask(home, job).path == place.path, "the same question is asked once"
    wait_until(lambda: comparisons.observed(place)["done"] or comparisons.observed(place)["error"])
    assert comparisons.observed(place)["error"] is None
    found = comparisons.frames(place)
    assert len(found["importance"]) == 2 * 6 * 8 and len(found["superficiality"]) == 4
    page = AppTest.from_file(str(ROOT / "pages" / "layers.py"), default_timeout=30).run()
    page.sidebar.toggle[0].set_value(True).run()
    assert not page.exception and not page.error
    assert len(page.get("bidi_component")) == 3


def test_one_model_alone_and_the_same_pair_twice_on_the_page(finished_run, home):
    """Without a second checkpoint there is no weight change; labels tell every analysis from the others."""
    sft = str(finished_run.phase(1, "sft").checkpoint)

    def asked(other, **settings):
        job = comparisons.analysis_job(str(POCKET), other, None, None, AnalyzeConfig(num_examples=4, **settings))
        place = comparisons.ask(home, job)
        wait_until(lambda: comparisons.observed(place)["done"] or comparisons.observed(place)["error"])
        return place

    places = [asked(sft), asked(sft, order="second"), asked(sft, max_length=64), asked(None)]
    found = comparisons.frames(places[-1])
    assert len(found["importance"]) == 6 * 8 and found["weight_change"].empty and found["superficiality"].empty
    page = AppTest.from_file(str(ROOT / "pages" / "layers.py"), default_timeout=30).run()
    page.sidebar.toggle[0].set_value(True).run()
    assert not page.exception and not page.error
    assert len(page.get("bidi_component")) == 2
    assert len(set(page.selectbox[0].options)) == 4
    assert any(label.endswith("num_examples 4 · order second") for label in page.selectbox[0].options)
    page.selectbox[0].set_value(places[0].comparison_id).run()
    assert not page.exception and len(page.get("bidi_component")) == 3


def test_other_runs_over_it_are_told_apart_and_one_not_yet_recorded_is_left_out(copied, home):
    twin = RunDir(home / "runs" / f"{copied.run_id}-twin")
    shutil.copytree(copied.path, twin.path)
    store.rebuild(home)
    late = RunDir(home / "runs" / f"{copied.run_id}-late")
    shutil.copytree(copied.path, late.path)
    names = charts.run_names(arms.arms_frame(store_path(home), [copied.run_id, twin.run_id, late.run_id]))
    assert names.keys() == {copied.run_id, twin.run_id} and len(set(names.values())) == 2
    page = AppTest.from_file(str(ROOT / "pages" / "layers.py"), default_timeout=30)
    page.query_params["run"] = copied.run_id
    page.run()
    page.sidebar.multiselect[0].set_value([twin.run_id, late.run_id]).run()
    assert not page.exception and not page.error


def test_the_page_shows_a_run(finished_run, monkeypatch):
    monkeypatch.setenv("WORKBENCH_HOME", str(finished_run.path.parents[1]))
    page = AppTest.from_file(str(ROOT / "pages" / "layers.py"), default_timeout=30).run()
    assert not page.exception and not page.error
    assert len(page.get("bidi_component")) == 5
    words = [*page.info, *page.success, *page.warning]
    assert sum("Half of the importance lies in layers" in word.value for word in words) == 2
