"""The cost ledger: nothing lost, nothing counted twice, no quotient without a sure gain."""

import json
import shutil

import pandas as pd
import pytest
from streamlit.testing.v1 import AppTest

from tests.conftest import ROOT
from workbench import ledger, report, store
from workbench.events import append_lines
from workbench.ingest import read_run
from workbench.rundir import RunDir, read_json, store_path, write_json


@pytest.fixture
def copied(finished_run, tmp_path):
    """A copy of the finished run, to be changed."""
    run = RunDir(tmp_path / "runs" / finished_run.run_id)
    shutil.copytree(finished_run.path, run.path)
    return run


def of_run(run):
    return ledger.of_rows(read_run(run, {}).rows, run.run_id)


def costs(**changes):
    """Sampling and fine-tuning of iteration 1 and a merge, with round numbers."""
    rows = [
        {"iteration": 0, "phase": "evaluate", "cost": {"seconds": 1000, "num_tokens": 5, "bytes_written": 7}},
        {"iteration": 1, "phase": "sample", "cost": {"seconds": 60, "num_tokens": 3000, "bytes_written": 10}},
        {"iteration": 1, "phase": "sft", "cost": {"seconds": 120, "num_tokens": 9000, "bytes_written": 20}},
        {"iteration": 1, "phase": "merge", "cost": {"seconds": 20, "num_tokens": None, "bytes_written": 20}},
        {"iteration": 2, "phase": "sample", "cost": {"seconds": 5000, "num_tokens": 1, "bytes_written": 1}},
    ]
    rows = [row | {"status": "done", "cost": json.dumps(row["cost"] | changes.get(row["phase"], {}))} for row in rows]
    return ledger.costs_of(pd.DataFrame(rows))


def counts(*rows):
    columns = ("iteration", "kind", "domain", "task", "gained", "lost", "num_questions", "num_tasks")
    return pd.DataFrame(rows, columns=list(columns))


def test_store_and_files_give_the_same_ledger(finished_run):
    from_store = ledger.of_store(store_path(finished_run.path.parents[1]), finished_run.run_id)
    for one, other in zip(from_store, of_run(finished_run), strict=True):
        pd.testing.assert_frame_equal(one, other, check_dtype=False)
    assert set(from_store[1]["kind"]) == {"sft", "merged"} and set(from_store[1]["domain"]) == {"ID", "OOD"}


def test_every_phase_of_a_real_run_has_its_cost(finished_run):
    found, _ = of_run(finished_run)
    assert list(found["phase"]) == ["evaluate", "sample", "sft", "merge", "evaluate", "analyze"]
    assert (found["attempts"] == 1).all() and (found["seconds"] > 0).all()
    assert found["peak_memory_gib"].between(0.05, 8).all()
    sft = found.set_index("phase").loc["sft"]
    weights = (finished_run.phase(1, "sft").checkpoint / "model.safetensors").stat().st_size
    assert weights < sft["bytes_written"] < 1.2 * weights + 10**6
    generated = found.loc[found["phase"] == "sample", "generated_tokens"].item()
    rows = read_run(finished_run, {}).rows
    assert generated == sum(row["num_tokens"] for row in rows["solutions"])
    total = ledger.total_of(found)
    assert total["seconds"] == pytest.approx(found["seconds"].sum())
    assert total["peak_memory_gib"] == found["peak_memory_gib"].max()
    assert total["generated_tokens"] == generated + sum(row["num_tokens"] for row in rows["outcomes"])


def test_the_seconds_are_those_of_the_clock(finished_run):
    found, _ = of_run(finished_run)
    ends = [read_json(place.result)["ended_at"] for place in finished_run.phases()]
    began = min(place.job.stat().st_mtime for place in finished_run.phases())
    assert 0.8 < found["seconds"].sum() / (max(ends) - began) <= 1.02


def test_a_sure_gain_is_divided_with_its_interval():
    prices = ledger.prices_of(costs(), counts((1, "merged", "ID", "steps", 60, 10, 200, 1)))
    row = prices.iloc[0]
    assert row["gain"] == 0.25 and row["verdict"] == "gain"
    assert row["seconds"] == 200, "evaluation, and what came later, made no part of it"
    assert row["seconds_per_point"] == pytest.approx(200 / 25)
    assert row["seconds_per_point_low"] == pytest.approx(200 / (100 * row["ci_high"]))
    assert row["seconds_per_point_low"] < 8 < row["seconds_per_point_high"]
    assert row["trained_tokens_per_point"] == pytest.approx(9000 / 25)
    assert row["generated_tokens_per_point"] == pytest.approx(3000 / 25)
    words = ledger.price_table(prices, ["Merge 1"]).iloc[0]
    assert words["seconds / point"].startswith("8 (") and words["points gained"].startswith("+25.0 (")


def test_the_price_of_sft_is_without_the_merge_after_it():
    prices = ledger.prices_of(costs(), counts((1, "sft", "ID", "steps", 60, 10, 200, 1)))
    assert prices["seconds"].item() == 180


@pytest.mark.parametrize(
    ("gained", "lost", "said"), [(12, 10, "no sure gain"), (0, 0, "no sure gain"), (5, 60, "sure loss")]
)
def test_without_a_sure_gain_nothing_is_divided(gained, lost, said):
    prices = ledger.prices_of(costs(), counts((1, "sft", "OOD", "words", gained, lost, 200, 1)))
    assert prices.filter(like="_per_point").isna().all(axis=None)
    words = ledger.price_table(prices, ["SFT 1"]).iloc[0]
    assert {words[title] for title, _ in ledger.PER_POINT.values()} == {said}


def test_ood_waits_for_all_its_tasks_and_weighs_them_alike():
    one, two = (1, "sft", "OOD", "words", 30, 0, 100, 2), (1, "sft", "OOD", "choice", 0, 0, 900, 2)
    assert ledger.prices_of(costs(), counts(one)).empty
    row = ledger.prices_of(costs(), counts(one, two)).iloc[0]
    assert row["gain"] == pytest.approx(0.15) and row["num_questions"] == 1000


def test_what_another_run_paid_is_in_the_price_and_not_in_the_total():
    taken = costs(sft={"taken_from": "other-run"})
    assert ledger.total_of(taken)["seconds"] == ledger.total_of(costs())["seconds"] - 120
    prices = ledger.prices_of(taken, counts((1, "sft", "ID", "steps", 60, 10, 200, 1)))
    assert prices["seconds"].item() == 180
    assert "from other-run" in set(ledger.phase_table(taken)["state"])


def test_a_run_at_work_and_one_of_an_early_version_are_shown_as_far_as_known(copied):
    place = copied.phase(1, "merge")
    result = read_json(place.result)
    del result["cost"]
    write_json(place.result, result | {"started_at": 100.0, "ended_at": 103.0})
    sft = copied.phase(1, "sft")
    sft.result.unlink()
    last = json.loads(sft.events.read_text().splitlines()[-1])["ts"]
    append_lines(sft.events, [{"ts": last + 50, "name": "started", "since": last + 40, "value": None, "step": 0}])
    found = of_run(copied)[0].set_index("phase")
    assert found.loc["merge", "seconds"] == 3 and pd.isna(found.loc["merge", "peak_memory_gib"])
    assert found.loc["sft", "attempts"] == 2 and pd.isna(found.loc["sft", "bytes_written"])
    table = ledger.phase_table(of_run(copied)[0]).set_index("phase")
    assert table.loc["sft", "state"] == "stopped, 2 attempts" and table.loc["merge", "peak memory, GiB"] == ""


def test_a_regrade_moves_the_gain_in_both(copied):
    root, place = copied.path.parents[1], copied.phase(1, "evaluate")
    outcomes = [row for row in read_run(copied, {}).rows["outcomes"] if row["iteration"] == 1 and row["sample"] == 0]
    mine = [row for row in outcomes if row["checkpoint_id"].endswith("/1/sft") and row["task"] == "pocket_steps"]
    keys = ("checkpoint_id", "task", "question_id", "sample", "answer")
    changes = [{k: row[k] for k in keys} | {"was_correct": row["is_correct"], "is_correct": False} for row in mine]
    changes = [row | {"rule": "none"} for row in changes]
    append_lines(place.regrades, [{"grader": "none", "ts": 1.0, "changes": changes, "scores": [], "pass_scores": []}])
    store.rebuild(root)
    for _, prices in (ledger.of_store(store_path(root), copied.run_id), of_run(copied)):
        row = prices[(prices["kind"] == "sft") & (prices["domain"] == "ID")].iloc[0]
        base = [r for r in read_run(copied, {}).rows["outcomes"] if r["checkpoint_id"].endswith("/0/base")]
        right = sum(r["is_correct"] for r in base if r["task"] == "pocket_steps" and r["sample"] == 0)
        assert row["gain"] == pytest.approx(-right / 16)


def test_show_has_the_ledger_as_words_and_as_json(finished_run, capsys):
    from rich.console import Console

    found = report.summary(finished_run.path.parents[1], finished_run.run_id)
    again = json.loads(json.dumps(found))["cost"]
    assert [row["phase"] for row in again["phases"]][0] == "evaluate" and len(again["per_point"]) == 4
    assert again["total"]["seconds"] > 0 and again["phases"][1]["trained_tokens"] is None
    report.print_summary(Console(width=160), found)
    printed = capsys.readouterr().out
    assert "whole run" in printed and "tokens trained on" in printed and "seconds / point" in printed


def test_live_page_has_the_ledger(finished_run, monkeypatch):
    monkeypatch.setenv("WORKBENCH_HOME", str(finished_run.path.parents[1]))
    opened = AppTest.from_file(str(ROOT / "pages" / "live.py"), default_timeout=30).run()
    assert not opened.exception
    tables = [frame.value for frame in opened.dataframe]
    phases = next(table for table in tables if "peak memory, GiB" in table)
    assert list(phases["phase"])[:3] == ["whole run", "evaluate", "sample"]
    prices = next(table for table in tables if "seconds / point" in table)
    assert list(prices["checkpoint"]) == ["SFT 1", "SFT 1", "Merge 1", "Merge 1"]


def test_a_store_of_an_early_version_gets_the_column(tmp_path):
    db = tmp_path / "early.duckdb"
    lines = store.SCHEMA.splitlines()
    early = "\n".join(line for line in lines if not line.startswith("    cost "))
    with store.connect(db, read_only=False) as connection:
        connection.execute(early)
        connection.execute("INSERT INTO phases (run_id, iteration, phase, status) VALUES ('r', 0, 'evaluate', 'done')")
    found, prices = ledger.of_store(db, "r")
    assert len(found) == 1 and prices.empty and pd.isna(found["seconds"][0])
    assert ledger.phase_table(found)["seconds"].tolist() == ["", ""]
