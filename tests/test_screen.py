"""Charts and pages on the store of a real run."""

import json
import shutil

import pandas as pd
import pytest
from streamlit.testing.v1 import AppTest

from tests.conftest import ROOT, small_config, wait_until
from workbench import charts, launch, queueing, screen, store
from workbench.labdir import find_lab
from workbench.processes import end_group
from workbench.rundir import store_path

PAGES = ROOT / "pages"


@pytest.fixture
def page(finished_run, monkeypatch):
    """Opens a page on the finished run's home."""
    monkeypatch.setenv("WORKBENCH_HOME", str(finished_run.path.parents[1]))
    return lambda name: AppTest.from_file(str(PAGES / name), default_timeout=30).run()


def test_accuracy_chart_shows_every_eval_with_its_interval(finished_run):
    evals = store.evals_frame(store_path(finished_run.path.parents[1]), finished_run.run_id)
    figure = charts.accuracy_by_checkpoint(evals, charts.checkpoint_order("imm", 3))
    drawn = [trace for trace in figure.data if trace.name]
    assert {trace.name for trace in drawn} == set(evals["task"])
    assert sum(len(trace.x) for trace in drawn) == len(evals)
    rows = evals[evals["task"] == "pocket_steps"]
    steps = next(trace for trace in drawn if trace.name == "pocket_steps")
    assert list(steps.x) == ["Base", "SFT 1", "Merge 1"]
    assert list(steps.y) == pytest.approx(list(100 * rows["accuracy"]))
    assert list(steps.error_y.array) == pytest.approx(list(100 * (rows["ci_high"] - rows["accuracy"])))
    assert [row[2] for row in steps.customdata] == [16, 16, 16]


def test_checkpoint_order():
    assert charts.checkpoint_order("imm", 2) == ["Base", "SFT 1", "Merge 1", "SFT 2", "Merge 2"]
    assert charts.checkpoint_order("vanilla", 2) == ["Base", "SFT 1", "SFT 2"]


def test_timeline_has_a_bar_per_phase():
    times = pd.to_datetime(["2026-01-01 00:00:00", "2026-01-01 00:00:10", "2026-01-01 00:00:30"])
    phases = pd.DataFrame(
        {
            "iteration": [0, 1],
            "phase": ["evaluate", "sample"],
            "status": ["done", "running"],
            "started_at": times[:2],
            "ended_at": times[1:],
        }
    )
    figure = charts.phase_timeline(phases)
    assert [(bar.base[0], bar.x[0]) for bar in figure.data] == [(0, 10), (10, 20)]


def test_runs_page_lists_the_run(page, finished_run):
    opened = page("runs.py")
    assert not opened.exception
    table = opened.dataframe[0].value
    assert list(table["run"]) == [finished_run.run_id]
    assert "done" in table["status"][0]


def test_a_curve_of_which_nothing_is_known_is_empty(tmp_path):
    curves = store.query(tmp_path / "s.duckdb", "SELECT [NULL, NULL]::DOUBLE[] AS none, [0.5, NULL]::DOUBLE[] AS half")
    assert screen.per_cent(curves["none"][0]) == [] and screen.per_cent(curves["half"][0]) == [50.0]
    assert screen.per_cent(None) == screen.per_cent(float("nan")) == []


def test_live_page_shows_the_run(page, finished_run):
    opened = page("live.py")
    assert not opened.exception
    assert finished_run.run_id in opened.subheader[0].value
    assert len(opened.get("bidi_component")) == 4
    assert not opened.button


def test_new_run_page_checks_as_one_types(page):
    opened = page("new_run.py")
    assert not opened.exception
    assert "workbench run --preset pocket" in opened.code[0].value
    opened.slider(key="pocket_alpha").set_value(0.3)
    opened.text_input(key="pocket_model").set_value("./nowhere").run()
    assert "--set alpha=0.3" in opened.code[0].value
    assert "no model directory './nowhere'" in opened.error[0].value
    assert opened.button[0].disabled


def test_a_change_is_signed_a_p_value_short_and_what_is_unknown_a_dash(page):
    opened = page("accuracy.py")
    assert [box.label for box in opened.selectbox[:2]] == ["From", "to"]
    table = next(table for table in opened.dataframe if "change" in table.value)
    rows = table.value.set_index(["on", "measure"])
    assert list(rows["change"]) == pytest.approx(list(rows["to, %"] - rows["from, %"]))
    assert rows["p (Holm)"].isna().any() and table.proto.placeholder == "–"
    columns = json.loads(table.proto.columns)
    looks = {name: columns[name]["type_config"]["format"] for name in ("change", "p (Holm)", "from, %")}
    assert looks == {"change": "%+.1f", "p (Holm)": "%.2g", "from, %": "%.1f"}
    assert any("above zero *Merge 1* is better" in caption.value for caption in opened.caption)


def broken():
    from workbench import screen

    screen.live(lambda: [][0], None)
    screen.guarded(lambda: (_ for _ in ()).throw(KeyError("hf_" + "a" * 34)))


def test_what_breaks_in_a_part_of_a_page_is_a_sentence_and_a_log_without_secrets(home):
    opened = AppTest.from_function(broken, default_timeout=30).run()
    assert not opened.exception
    assert [error.value.split(": ")[0] for error in opened.error] == ["This part of the page could not be drawn"] * 2
    assert "IndexError" in opened.error[0].value and str(home / "screen.log") in opened.error[0].value
    log = (home / "screen.log").read_text()
    assert log.count("Traceback") == 2 and "hf_aaaa" not in log + opened.error[1].value


def test_the_log_of_the_screen_stays_small(home, monkeypatch):
    monkeypatch.setattr(screen, "LOG_BYTES", 2000)
    for _ in range(50):
        try:
            raise IndexError("as a page that draws itself every two seconds, of a file b\udcff.jsonl")
        except IndexError as error:
            assert screen.write_down(error) == str(home / "screen.log")
    assert {path.name for path in home.iterdir()} == {"screen.log", "screen.log.1"}
    assert all(path.stat().st_size < 3000 for path in home.iterdir())


def test_new_run_says_where_values_come_from_and_goes_without_a_preset(page):
    opened = page("new_run.py")
    assert opened.main[0].type == "title"
    said = [caption.value for caption in opened.caption]
    assert "- sft.learning_rate: 0.0004, default 2e-05\n" in said[said.index("From preset pocket:") + 1]
    opened.text_input(key="pocket_model").set_value("Qwen/Qwen2.5-0.5B-Instruct").run()
    assert "preset pocket is made for data/pocket/model" in opened.warning[0].value
    said = [caption.value for caption in opened.caption]
    assert said[said.index("Set here:") + 1] == "- model: Qwen/Qwen2.5-0.5B-Instruct"
    opened.selectbox[0].set_value("none: the documented defaults").run()
    assert "Give a base model and a train task" in opened.info[0].value and opened.button[0].disabled
    opened.text_input(key="None_model").set_value("Qwen/Qwen2.5-0.5B-Instruct")
    opened.selectbox(key="None_train").set_value("gsm8k").run()
    assert opened.code[0].value == "workbench run --set model=Qwen/Qwen2.5-0.5B-Instruct --set train_task=gsm8k"
    said = [caption.value for caption in opened.caption]
    assert said[said.index("Set here:") + 1] == "- model: Qwen/Qwen2.5-0.5B-Instruct\n- train_task: gsm8k"
    assert not opened.info and not opened.exception  # whether it fits into this machine's memory is another question


def test_empty_home_offers_the_pocket_run(home):
    opened = AppTest.from_file(str(PAGES / "runs.py"), default_timeout=30).run()
    assert not opened.exception
    assert [button.label for button in opened.button] == ["Start the pocket run"]


def test_merge_page_opens_on_the_run(finished_run, home):
    shutil.copytree(finished_run.path, home / "runs" / finished_run.run_id)
    opened = AppTest.from_file(str(PAGES / "merge.py"), default_timeout=30).run()
    assert not opened.exception
    lab = find_lab(home, f"{finished_run.run_id}-i1")
    wait_until(lab.moments.exists)
    opened.run()
    assert not opened.exception
    assert "Evaluate this merge" in [button.label for button in opened.button]
    assert "No merge measured yet" in opened.info[0].value
    end_group(lab, 5)


def test_runs_that_have_no_scores_yet_are_shown(home):
    queueing.change_settings(home, paused=True)
    for seed in (0, 1):
        launch.launch(small_config(seed=seed), home)
    page = AppTest.from_file(str(ROOT / "pages" / "runs.py"), default_timeout=60).run()
    assert not page.exception and len(page.dataframe[0].value) == 2


def test_accuracy_waits_for_a_run_that_the_store_does_not_have_yet(home):
    queueing.change_settings(home, paused=True)
    run_id = launch.launch(small_config(), home)
    store_path(home).unlink(missing_ok=True)
    opened = AppTest.from_file(str(PAGES / "accuracy.py"), default_timeout=60)
    opened.query_params["run"] = run_id
    opened.run()
    assert not opened.exception and not opened.error
    assert any("being set up" in said.value or "first accuracies" in said.value for said in opened.info)


@pytest.mark.parametrize("name", ["../runs", "<b>[x](http://a.b)`![y](http://c.d)", "a" * 500, ","])
def test_any_text_in_an_address_is_at_most_a_run_that_is_not_here(finished_run, monkeypatch, name):
    monkeypatch.setenv("WORKBENCH_HOME", str(finished_run.path.parents[1]))
    for path in ("live.py", "accuracy.py"):
        opened = AppTest.from_file(str(PAGES / path), default_timeout=30)
        opened.query_params["run"] = name
        opened.run()
        assert not opened.exception
        said = [error.value for error in opened.error]
        if name == ",":
            assert said == [] and len(opened.get("bidi_component")) > 0
        else:
            assert len(said) == 1 and said[0].startswith("There is no run `") and f"`{finished_run.run_id}`" in said[0]
            assert not set("<[(!") & set(said[0].split("`")[1]) and opened.get("bidi_component") == []
