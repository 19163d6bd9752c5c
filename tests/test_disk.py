"""A disk that fills up, and what is let go so that it does not."""

import json
import os
import resource
import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from tests.conftest import ROOT, small_config, wait_for_end, wait_until
from tests.test_runs import final_table
from workbench import disk, lab, launch, queueing, retention
from workbench.checkpoints import check_model
from workbench.cli import app
from workbench.config import RunConfig
from workbench.core.recipe import Recipe
from workbench.labdir import Point, requests_left
from workbench.merging.files import merge_checkpoints, restore
from workbench.plan import plan
from workbench.processes import end_group, is_alive
from workbench.rundir import RunDir, find_run, read_json, write_json

POCKET = ROOT / "data" / "pocket" / "model"


@pytest.fixture
def small_disk(tmp_path, monkeypatch):
    """A home on a file system of its own, of 400 MB; skipped where this user may not mount one."""
    root = tmp_path / "disk"
    root.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400m", "tmpfs", root], capture_output=True).returncode:
        pytest.skip("mounting a file system is not possible here")
    monkeypatch.setenv("WORKBENCH_HOME", str(root))
    try:
        yield root
    finally:
        (root / "ballast").unlink(missing_ok=True)
        end_group(queueing.QueueDir.of(root), 2.0)
        for path in (root / "runs").glob("*"):
            end_group(RunDir(path), 0.0)
        subprocess.run(["umount", "--lazy", root], check=True)


def fill(root: Path) -> None:
    """Leave not a byte."""
    with (root / "ballast").open("ab", buffering=0) as file:
        for piece in (2**20, 4096):
            try:
                while True:
                    file.write(b"\1" * piece)
            except OSError as error:
                assert disk.is_full(error)


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["sft", "sample"])
def test_a_full_disk_stops_the_run_with_the_reason_and_it_resumes(finished_run, small_disk, phase):
    run_id = launch.launch(small_config(**{"analyze.enabled": False}), small_disk)
    run = find_run(small_disk, run_id)
    place = run.phase(1, phase)
    wait_until(lambda: place.events.exists(), 400)  # the phase has begun
    fill(small_disk)
    status, error = wait_for_end(small_disk, run_id, 400)
    assert status == "failed", error
    assert f"The disk tmpfs on {small_disk} is full" in error and f"workbench resume {run_id}" in error
    assert "of 419.4 MB are free" in error and "workbench gc --dry-run" in error
    (small_disk / "ballast").unlink()
    wait_until(lambda: queueing.ticket_of(small_disk, run_id) is None, 60)
    launch.resume(small_disk, run_id)
    assert wait_for_end(small_disk, run_id, 400)[0] == "done"
    for mine, whole in zip(final_table(run), final_table(finished_run), strict=True):
        assert mine.equals(whole)
    for file in run.path.rglob("*.jsonl"):
        assert all(isinstance(json.loads(line), dict) for line in file.read_text().splitlines()), file


def test_a_full_disk_is_said_by_the_lab_which_then_goes_on(finished_run, small_disk):
    shutil.copytree(finished_run.path, small_disk / "runs" / finished_run.run_id)
    opened = lab.open_lab(small_disk, finished_run.run_id, 1)
    try:
        wait_until(opened.moments.exists, 400)
        lab.ask(opened, Point(merge=small_config().merge, num_questions=100))
        wait_until(lambda: opened.outcomes.exists(), 400)
        fill(small_disk)
        wait_until(lambda: not is_alive(opened), 400)
        assert f"The disk tmpfs on {small_disk} is full" in lab.observed(opened)["error"]
        (small_disk / "ballast").unlink()
        lab.wake(opened)
        wait_until(lambda: opened.points.exists() and not requests_left(opened), 400)
        rows = [json.loads(line) for line in opened.outcomes.read_text().splitlines()]
        assert len(rows) == len({(row["task"], row["question_id"]) for row in rows})
    finally:
        end_group(opened, 5.0)


def test_no_file_may_grow_is_said_too(finished_run, tmp_path):
    place = tmp_path / "iteration_1" / "merge"
    place.mkdir(parents=True)
    shutil.copy(finished_run.phase(1, "merge").job, place)

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))

    command = [sys.executable, "-m", "workbench.phases.merge", str(place)]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit)
    assert done.returncode == disk.EXIT_CODE
    assert "may grow beyond 1.0 MB (ulimit -f)" in done.stderr.splitlines()[-1]
    assert [path.name for path in place.iterdir() if path.suffix not in (".json", ".jsonl")] == []


def make_run(root: Path, done: int = 3, **changes) -> RunDir:
    """A run of three iterations of which some are done, its checkpoints real ones, with hardly any work."""
    config = launch.resolved(small_config(iterations=3, **changes), root)
    run = RunDir(root / "runs" / f"20260101-000000-imm-s0-{len(list(root.glob('runs/*'))):04d}")
    base = check_model(config.model)
    about = {"path": str(base.path), "num_parameters": base.num_parameters, "bytes": base.bytes}
    write_json(run.config, {"run_id": run.run_id, "created_at": 0.0, "config": config.model_dump(mode="json"),
                            "base": about})  # fmt: skip
    write_json(run.status, {"status": "stopped", "since": 0.0, "iteration": None, "phase": None, "error": None})
    start = base.path
    write_json(run.phase(0, "evaluate").job, {})
    write_json(run.phase(0, "evaluate").result, {})
    for iteration in range(1, done + 1):
        sft, merge = run.phase(iteration, "sft"), run.phase(iteration, "merge")
        shutil.copytree(base.path, sft.checkpoint)
        tensors = load_file(sft.checkpoint / "model.safetensors")
        save_file({name: value * 1.01 for name, value in tensors.items()}, sft.checkpoint / "model.safetensors")
        merge_checkpoints(base.path, start, sft.checkpoint, {merge.checkpoint: Recipe(0.5, 0.2, iteration)})
        start = merge.checkpoint
        for phase in ("sample", "sft", "merge", "evaluate", "analyze"):
            write_json(run.phase(iteration, phase).job, {})
            write_json(run.phase(iteration, phase).result, {})
    return run


def weights(run: RunDir) -> list[int]:
    """The iterations whose merge has its weights."""
    return [place.iteration for place in retention.merges(run)]


def digest(path: Path) -> str:
    return sha256((path / "model.safetensors").read_bytes()).hexdigest()


def test_merges_go_when_the_run_is_done_with_them_and_come_again_the_same(home):
    run = make_run(home)
    first, second = (run.phase(n, "merge").checkpoint for n in (1, 2))
    before = digest(first), digest(second)
    run.phase(3, "analyze").result.unlink()  # it reads what iteration 3 started from
    retention.let_go(run)
    assert weights(run) == [2, 3]
    write_json(run.phase(3, "analyze").result, {})
    retention.let_go(run)
    assert weights(run) == [3]
    assert check_model(str(second)).num_parameters == check_model(str(POCKET)).num_parameters
    assert restore(second) == [second]  # which needs the first, which needs nothing that is gone
    assert (digest(first), digest(second)) == before
    retention.let_go(run)
    assert weights(run) == [3]  # what was made again may go again


def test_what_somebody_needs_stays(home):
    run = make_run(home)
    first = run.phase(1, "merge").checkpoint
    other = make_run(home, done=0, start=str(first))  # a continuation, stopped before it began
    retention.let_go(run)
    assert weights(run) == [1, 3]
    shutil.rmtree(other.path)
    opened = lab.open_lab(home, run.run_id, 2)  # starts from merge 1
    end_group(opened, 5.0)
    lab.append_lines(opened.requests, [Point(merge=small_config().merge, num_questions=1).model_dump(mode="json")])
    retention.let_go(run)
    assert weights(run) == [1, 3]
    lab.cancel(opened)
    retention.let_go(run)
    assert weights(run) == [3]


def test_what_might_not_come_out_the_same_stays(home):
    run = make_run(home)
    (run.phase(1, "sft").checkpoint / "model.safetensors").touch()
    kept = {kept.path: kept.why for kept in retention.spares(home)[1]}
    assert "has changed since" in kept[run.phase(1, "merge").checkpoint / "model.safetensors"]
    retention.let_go(run)
    assert weights(run) == [1, 3]


def test_a_phase_makes_what_it_needs_again(home):
    run = make_run(home)
    second, third = run.phase(2, "merge"), run.phase(3, "merge")
    before = digest(second.checkpoint)
    retention.let_go(run)
    config = RunConfig.model_validate(read_json(run.config)["config"])
    jobs = {place: job for place, job in plan(run, config, read_json(run.config)["base"]["path"], 1)}
    write_json(third.job, jobs[third].model_dump(mode="json"))
    third.result.unlink()  # as if the run went on from there
    subprocess.run([sys.executable, "-m", "workbench.phases.merge", str(third.path)], check=True)
    assert digest(second.checkpoint) == before and third.result.exists()
    assert "was made again, the same byte for byte" in third.events.read_text()


def test_a_lab_makes_what_it_needs_again(home):
    run = make_run(home)
    first = run.phase(1, "merge").checkpoint
    before = digest(first)
    retention.let_go(run)
    assert weights(run) == [3]
    opened = lab.open_lab(home, run.run_id, 2)
    wait_until(lambda: opened.moments.exists(), 240)
    end_group(opened, 5.0)
    assert digest(first) == before


def test_gc_lists_what_it_would_take_and_takes_no_more(home):
    run = make_run(home, done=2)
    for phase in ("evaluate", "analyze"):
        run.phase(2, phase).result.unlink()
    twin = make_run(home, done=1)
    place = run.phase(3, "sft")
    write_json(place.job, {})
    states = {step: place.path / "trainer" / f"checkpoint-{step}" for step in (2, 4, 6)}
    for step, folder in states.items():
        folder.mkdir(parents=True)
        (folder / "optimizer.pt").write_bytes(b"\1" * 8192)
        (folder / "trainer_state.json").write_text("{}" if step < 6 else '{"cut')
    scratch = run.phase(2, "merge").path / ".checkpoint.tmp"
    scratch.mkdir()
    (scratch / "model.safetensors").write_bytes(b"\1" * 4096)
    shared = twin.phase(1, "sft").path / ".checkpoint.tmp"
    shared.mkdir()
    os.link(twin.phase(1, "sft").checkpoint / "model.safetensors", shared / "model.safetensors")

    def gc(*options):
        result = CliRunner().invoke(app, ["gc", "--json", *options])
        assert result.exit_code == 0, result.output
        return json.loads(result.output)

    would = gc("--dry-run")
    going = {Path(row["path"]): row for row in would["gone"]}
    assert set(going) == {states[2], states[6], scratch, shared}  # merge 1 is read by the analysis still to be done
    assert going[scratch]["bytes"] >= 4096 and going[shared]["bytes"] < 2**20  # the other link keeps its blocks
    assert would["bytes"] == sum(row["bytes"] for row in would["gone"])
    assert {Path(row["path"]) for row in would["kept"]} == {
        states[4],
        run.phase(1, "merge").checkpoint / retention.WEIGHTS,
    }
    assert all(path.exists() for path in going)
    write_json(run.phase(2, "analyze").result, {})
    write_json(run.phase(2, "evaluate").result, {})
    assert {Path(row["path"]) for row in gc()["gone"]} == {*going, run.phase(1, "merge").checkpoint / retention.WEIGHTS}
    assert not any(path.exists() for path in going) and states[4].exists() and weights(run) == [2]
    assert [Path(row["path"]) for row in gc("--states")["gone"]] == [states[4]]
    assert gc() == {"dry_run": False, "bytes": 0, "gone": [], "kept": []}
    assert weights(twin) == [1] and digest(twin.phase(1, "sft").checkpoint)


@pytest.mark.slow
def test_a_run_that_keeps_the_needed_comes_to_the_same_table(home):
    light = {"iterations": 2, "eval_tasks": (), "evaluate.num_samples": 0, "analyze.enabled": False}
    whole = launch.launch(small_config(**light), home)
    spare = launch.launch(small_config(keep="needed", **light), home)
    for run_id in (whole, spare):
        assert wait_for_end(home, run_id, 900)[0] == "done"
    mine, theirs = find_run(home, spare), find_run(home, whole)
    for left, right in zip(final_table(mine), final_table(theirs), strict=True):
        assert left.equals(right)
    assert weights(theirs) == [1, 2] and weights(mine) == [2]
    restore(mine.phase(1, "merge").checkpoint)
    assert digest(mine.phase(1, "merge").checkpoint) == digest(theirs.phase(1, "merge").checkpoint)
    assert not list(mine.path.rglob("optimizer.pt")) and read_json(mine.phase(2, "sft").result)
