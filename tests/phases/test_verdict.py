"""Go / no-go after iteration 1: what is compared, when it alarms, and that a run stops and goes on."""

import pytest

from tests.conftest import small_config, wait_for_end, wait_until
from workbench import launch, store
from workbench.events import append_lines
from workbench.jobs import Baseline, Checkpoint, EvaluateJob, TaskSource
from workbench.phases.verdict import go_no_go
from workbench.report import summary
from workbench.rundir import find_run, read_json, store_path


def rows(checkpoint_id, right, total=100, task="steps"):
    """Greedy answers, the first `right` of them right, and a sampled one that must not count."""
    answers = [(str(i), 0, i < right) for i in range(total)] + [("0", 1, True)]
    keys = ("question_id", "sample", "is_correct")
    return [{"checkpoint_id": checkpoint_id, "task": task} | dict(zip(keys, row, strict=True)) for row in answers]


def verdict_of(tmp_path, base_rows, sft_rows, kind="sft"):
    """The verdict, and the alerts it raised."""
    file, alerts = tmp_path / "outcomes.jsonl", []
    append_lines(file, base_rows)
    job = EvaluateJob(
        checkpoints=(Checkpoint(checkpoint_id="r/1/sft", kind=kind, path="nowhere"),),
        baseline=Baseline(checkpoint_id="r/0/base", outcomes=str(file)),
        id_task=TaskSource(task="steps"),
        ood_tasks=(),
        iteration=1,
        seed=0,
        evaluate=small_config().evaluate,
        engine=small_config().engine,
        threads=1,
    )
    return go_no_go(job, "steps", sft_rows, lambda name, text: alerts.append((name, text))), alerts


@pytest.mark.parametrize(("right", "is_worse"), [(40, True), (52, True), (57, False), (60, False), (90, False)])
def test_worse_means_an_interval_below_zero(tmp_path, right, is_worse):
    verdict, alerts = verdict_of(tmp_path, rows("r/0/base", 60), rows("r/1/sft", right))
    assert verdict["is_worse"] == is_worse == (verdict["ci_high"] < 0) == bool(alerts)
    assert (verdict["base"], verdict["sft"]) == (0.6, right / 100)
    assert verdict["value"] == pytest.approx((right - 60) / 100)


def test_only_the_bases_greedy_answers_to_the_same_questions_count(tmp_path):
    others = rows("r/0/start", 0) + rows("r/0/base", 0, task="words")
    verdict, _ = verdict_of(tmp_path, others + rows("r/0/base", 60), rows("r/1/sft", 40, total=80))
    assert verdict["num_questions"] == 80
    assert (verdict["base"], verdict["sft"]) == (60 / 80, 40 / 80)


def test_no_sft_no_verdict(tmp_path):
    assert verdict_of(tmp_path, rows("r/0/base", 60), rows("r/1/sft", 0), kind="merged") == (None, [])


def test_a_run_made_worse_stops_with_its_numbers_and_resume_goes_on(home):
    worse = {"learning_rate": 0.3, "stop_if_worse": True, "iterations": 2, "eval_tasks": (), "eval_questions": 60}
    worse |= {"analyze.enabled": False, "evaluate.num_samples": 0, "alpha": 1.0}  # 1: iteration 2 starts from the base
    run_id = launch.launch(small_config(**worse), home)
    run = find_run(home, run_id)
    status, sentence = wait_for_end(home, run_id)
    verdict = read_json(run.phase(1, "evaluate").result)["summary"]["go_no_go"]
    assert status == "stopped" and verdict["is_worse"], sentence
    assert f"{100 * verdict['sft']:.1f} % of pocket_steps" in sentence and "n = 60 questions" in sentence
    assert f"workbench resume {run_id}" in sentence and summary(home, run_id)["error"] == sentence
    assert not run.phase(2, "sample").path.exists()
    recorded = store.query(store_path(home), "SELECT status, error FROM runs")
    assert recorded.values.tolist() == [["stopped", sentence]]
    alerts = store.query(store_path(home), "SELECT text FROM notes WHERE kind = 'alert' AND iteration = 1")["text"]
    assert any("may not be able to improve itself" in text for text in alerts)

    launch.resume(home, run_id)
    wait_until(run.phase(2, "sample").result.exists)  # it goes on, and does not stop for the same verdict again
    assert launch.observed_status(run)[0] == "running"
    launch.stop(home, run_id)
    wait_for_end(home, run_id)


def test_without_the_switch_it_says_so_and_goes_on(finished_run):
    summaries = [read_json(finished_run.phase(i, "evaluate").result)["summary"] for i in (0, 1)]
    assert summaries[0]["go_no_go"] is None
    assert summaries[1]["go_no_go"]["num_questions"] == 16
    assert not finished_run.no_go.exists()
