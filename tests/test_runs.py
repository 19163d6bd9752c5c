"""Real runs of the pocket model: launched, stopped, killed, resumed."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import psutil
import pytest

from tests.conftest import small_config, wait_for_end, wait_until
from workbench import checks, launch, machine, store
from workbench.rundir import find_run, read_json, store_path, write_json
from workbench.settings import build_config


def final_table(run):
    """What a run measured: every eval without its time, every kept solution, every answer."""
    db = store_path(run.path.parents[1])
    cut = f"replace(checkpoint_id, '{run.run_id}', '') AS checkpoint"
    evals = store.query(
        db, f"SELECT {cut}, task, num_correct, num_questions FROM evals WHERE run_id = ? ORDER BY ALL", [run.run_id]
    )
    kept = store.query(db, "SELECT * EXCLUDE (run_id) FROM solutions WHERE run_id = ? ORDER BY ALL", [run.run_id])
    answers = store.query(
        db, f"SELECT {cut}, task, question_id, text FROM outcomes WHERE run_id = ? ORDER BY ALL", [run.run_id]
    )
    return evals, kept, answers


def phase_process(run, phase):
    """The process of a phase at work, or None; sample and evaluate share one."""
    status = read_json(run.status)
    module = "warm" if phase in ("sample", "evaluate") else phase
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if f"workbench.phases.{module}" in words and words[-1].startswith(str(run.path)):
            return process if module == phase or status["phase"] == phase else None
    return None


def begun(place):
    """Whether a phase has reported progress, or is over."""
    return place.result.exists() or (place.events.exists() and "progress" in place.events.read_text())


def test_killed_in_every_phase_and_resumed_gives_the_same_table(finished_run, home):
    run_id = launch.launch(small_config(**{"analyze.enabled": False}), home)
    run = find_run(home, run_id)
    for phase, iteration in (("evaluate", 0), ("sample", 1), ("sft", 1), ("merge", 1)):
        wait_until(partial(phase_process, run, phase))
        place = run.phase(iteration, phase)
        if phase != "merge":  # a merge of the pocket model is over in a blink; it is killed while it starts
            wait_until(partial(begun, place))
        runner = psutil.Process(read_json(run.process)["pid"])
        doomed = [runner] if phase == "sample" else [*runner.children(), runner]  # once, the phase lives on
        for process in doomed:
            process.kill()
        runner.wait(10)
        status, error = launch.observed_status(run)
        assert status == "failed" and f"workbench resume {run_id}" in error
        launch.resume(home, run_id)
    assert wait_for_end(home, run_id)[0] == "done"
    for mine, whole in zip(final_table(run), final_table(finished_run), strict=True):
        assert mine.equals(whole)


def test_stop_ends_everything_and_is_recorded(home):
    run_id = launch.launch(small_config(num_questions=400), home)
    run = find_run(home, run_id)
    wait_until(lambda: phase_process(run, "evaluate") is not None)
    began = time.monotonic()
    launch.stop(home, run_id)
    assert time.monotonic() - began < 10
    assert launch.observed_status(run) == ("stopped", None)
    assert phase_process(run, "evaluate") is None
    assert not launch.is_alive(run)
    wait_until(lambda: store.runs_frame(store_path(home))["status"][0] == "stopped", 5)
    with pytest.raises(ValueError, match="is not running; it is stopped"):
        launch.stop(home, run_id)


def test_a_failing_phase_says_why(home, tmp_path):
    task = tmp_path / "hard"
    task.mkdir()
    for split in ("train", "test"):
        (task / f"{split}.jsonl").write_text('{"question": "What?", "answer": "nothing the model says"}\n' * 3)
    run_id = launch.launch(small_config(train_task=str(task), eval_tasks=(), num_questions=3, eval_questions=3), home)
    status, error = wait_for_end(home, run_id)
    assert status == "failed"
    assert "Phase sft of iteration 1" in error
    assert "no sampled solution was correct" in error
    assert "workbench resume" in error


def test_the_second_run_waits_for_the_first(home):
    first = launch.launch(small_config(num_questions=200, threads=None), home)
    wait_until(lambda: launch.observed_status(find_run(home, first))[0] == "running")
    second = launch.launch(small_config(seed=1, threads=None), home)
    time.sleep(2)
    assert launch.observed_status(find_run(home, second))[0] == "queued"
    launch.stop(home, first)
    wait_until(lambda: launch.observed_status(find_run(home, second))[0] == "running", 30)
    launch.stop(home, second)


def test_a_reused_pid_is_not_taken_for_the_runner(finished_run):
    run = finished_run
    saved = read_json(run.process)
    try:
        write_json(run.process, saved | {"pid": os.getpid()})
        assert not launch.is_alive(run)
    finally:
        write_json(run.process, saved)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": "/no/such/model"}, "no model directory '/no/such/model'"),
        ({"train_task": "gsm9k"}, "no task 'gsm9k'"),
        ({"eval_tasks": ["./none.jsonl"]}, "no task './none.jsonl'"),
    ],
)
def test_bad_input_is_refused_before_anything_starts(home, changes, said):
    with pytest.raises(ValueError, match=said):
        launch.launch(small_config(**changes), home)
    assert not list((home / "runs").glob("*/config.json"))


def test_too_little_disk_is_said_in_gb(home, monkeypatch):
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 10**7}))
    with pytest.raises(ValueError, match=r"needs 0\.[12] GB \(checkpoints .*\) and 0\.0 GB are free"):
        launch.launch(small_config(), home)


def test_sessions_of_one_app_do_not_take_each_others_scratch_files(tmp_path):
    def session(number: int) -> None:
        checks.check_writable(tmp_path)
        write_json(tmp_path / "status.json", {"number": number})

    with ThreadPoolExecutor(8) as sessions:
        list(sessions.map(session, range(400)))
    assert [path.name for path in tmp_path.glob("*.json")] == ["status.json"] and not list(tmp_path.glob(".*"))


def test_an_unwritable_home_is_named(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(ValueError, match=f"cannot write to {blocked}"):
        launch.launch(small_config(), blocked)


def test_runner_is_its_own_session(home):
    run_id = launch.launch(small_config(), home)
    run = find_run(home, run_id)
    wait_until(lambda: launch.is_alive(run))
    pid = read_json(run.process)["pid"]
    assert os.getsid(pid) == pid != os.getsid(0)
    launch.stop(home, run_id)
    wait_until(lambda: not psutil.pid_exists(pid), 10)  # its parent, the supervisor, takes note


def test_config_is_all_that_is_needed(finished_run):
    written = read_json(finished_run.config)
    assert build_config(written["config"]).model_dump(mode="json") == written["config"]
    assert {"python", "torch", "transformers", "workbench"} <= written["versions"].keys()
