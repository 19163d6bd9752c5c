"""The merge lab on a real run: points, more questions, a search, stop, export, what goes wrong."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from tests.conftest import wait_for_end, wait_until
from workbench import lab as labs
from workbench import launch, store
from workbench.config import AnalyzeConfig, MergeConfig
from workbench.core.recipe import Recipe
from workbench.events import read_lines
from workbench.jobs import TaskSource
from workbench.labdir import (
    BASE,
    Export,
    LabConfig,
    LabDir,
    Point,
    Search,
    find_lab,
    point_id,
    read_config,
    requests_left,
)
from workbench.merging.files import merge_checkpoints
from workbench.phases.search import next_merge
from workbench.processes import end_group, is_alive
from workbench.rundir import read_json, store_path

MIX = MergeConfig(alpha=0.4, drop_rate=0.3)


@pytest.fixture
def lab(finished_run, home) -> LabDir:
    """The lab of a copy of the finished run; its process is ended afterwards."""
    shutil.copytree(finished_run.path, home / "runs" / finished_run.run_id)
    lab = labs.open_lab(home, finished_run.run_id, 1)
    yield lab
    end_group(lab, 5)


def finish(lab):
    """Wait until everything asked for is done; what went wrong."""
    wait_until(lambda: not requests_left(lab) and labs.observed(lab)["doing"] is None)
    return labs.observed(lab)["error"]


def test_points_search_export_and_store(lab, home, tmp_path):
    wait_until(lab.moments.exists)
    pair = read_json(lab.moments)
    assert len(pair["moments"]) == len(pair["layers"]) and len(pair["change"]) == 6
    out = tmp_path / "mine"
    labs.ask(lab, Point(merge=BASE, num_questions=8), Point(merge=MIX, seed=2, num_questions=8),
             Search(num_points=1, num_questions=4), Export(merge=MIX, seed=2, directory=str(out)))  # fmt: skip
    assert finish(lab) is None
    frame = store.merges_frame(store_path(home), lab.lab_id)
    mine = frame[frame["point_id"] == point_id(MIX, 2)]
    assert set(mine["task"]) == {"pocket_steps", "pocket_words", "pocket_choice", "pocket_compare"}
    assert set(mine["num_questions"]) == {8} and set(mine["split"]) == {"validation"}
    assert frame["point_id"].nunique() == 3
    # In memory and from the file the merge is the same model: the same answers.
    report = json.loads((out / "merge.json").read_text())
    again = merge_checkpoints(*(Path(read_json(lab.config)[side]) for side in ("base", "start", "sft")),
                              {tmp_path / "again": Recipe(0.4, 0.3, 2)})[0]  # fmt: skip
    assert report["sha256"] == again["sha256"]
    assert "alpha | 0.4" in (out / "README.md").read_text() and "validation" in (out / "README.md").read_text()
    AutoModelForCausalLM.from_pretrained(out)
    # More questions: only the new ones are asked.
    labs.ask(lab, Point(merge=MIX, seed=2, num_questions=12))
    assert finish(lab) is None
    rows, _ = read_lines(lab.outcomes)
    keys = [(row["point_id"], row["task"], row["question_id"]) for row in rows]
    assert len(keys) == len(set(keys)) and sum(key[0] == point_id(MIX, 2) for key in keys) == 4 * 12
    before = store.merges_frame(store_path(home), lab.lab_id)
    store.rebuild(home)
    assert store.merges_frame(store_path(home), lab.lab_id).equals(before)
    # A run that goes on from the merge.
    config = launch.continuation(home, lab.lab_id.removesuffix("-i1"), out)
    assert config.analyze.enabled
    run_id = launch.launch(config.model_copy(update={"analyze": AnalyzeConfig(enabled=False)}), home)
    assert wait_for_end(home, run_id)[0] == "done"
    scores = store.evals_frame(store_path(home), run_id)
    assert list(dict.fromkeys(scores["kind"])) == ["base", "start", "sft", "merged"]
    assert read_config(labs.open_lab(home, run_id, 1)).start == str(out)
    end_group(labs.open_lab(home, run_id, 1), 5)


def test_a_killed_lab_goes_on_and_a_cancelled_request_ends(lab):
    wait_until(lab.moments.exists)
    labs.ask(lab, Point(merge=MIX, num_questions=30))
    wait_until(lambda: read_lines(lab.outcomes)[0])
    os.kill(read_json(lab.process)["pid"], signal.SIGKILL)
    wait_until(lambda: not is_alive(lab))
    assert "gone" in labs.observed(lab)["error"]
    labs.wake(lab)
    assert finish(lab) is None
    rows, _ = read_lines(lab.outcomes)
    assert len(rows) == len({(row["task"], row["question_id"]) for row in rows}) == 4 * 30
    labs.ask(lab, *(Point(merge=MIX, seed=seed, num_questions=300) for seed in range(5)))
    labs.cancel(lab)
    assert finish(lab) is None and not requests_left(lab)


def test_what_goes_wrong_is_said_and_ends_nothing(lab, home, tmp_path):
    full = tmp_path / "full"
    full.mkdir()
    (full / "x").write_text("")
    labs.ask(lab, Export(merge=MIX, directory=str(full)))
    assert "exists and is not empty" in finish(lab)
    with pytest.raises(ValueError, match="no lab '../x'"):
        find_lab(home, "../x")
    with pytest.raises(ValueError, match="iteration 2 of .* has no fine-tuned checkpoint yet"):
        labs.open_lab(home, lab.lab_id.removesuffix("-i1"), 2)
    source = TaskSource(task="sat_math", datasets=str(home))
    (home / "sat_math").mkdir()
    (home / "sat_math" / "test.jsonl").write_text("{}")
    usable, remarks = labs.tuning_tasks(LabConfig(base="b", start="b", sft="s", id_task=None, ood_tasks=(source,)))
    assert usable == [] and "has only a test split, and settings are not chosen on that" in remarks[0]


def test_checkpoints_that_cannot_be_read_are_said(finished_run, home):
    copy = home / "runs" / finished_run.run_id
    shutil.copytree(finished_run.path, copy)
    weights = copy / "iteration_1" / "sft" / "checkpoint" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    lab = labs.open_lab(home, finished_run.run_id, 1)
    wait_until(lambda: labs.observed(lab)["error"] is not None, 60)
    assert "model.safetensors is truncated" in labs.observed(lab)["error"]
    end_group(lab, 5)


def test_a_search_repeats_itself_and_tries_nothing_twice():
    points = []
    for n in range(8):
        merge = next_merge(points, n)
        assert merge == next_merge(points, n)
        score = {"domain": "ID", "accuracy": 1 - merge.alpha}, {"domain": "OOD", "accuracy": merge.alpha}
        points.append({"merge": merge.model_dump(mode="json"), "scores": score})
    assert len({(p["merge"]["alpha"], p["merge"]["drop_rate"]) for p in points}) == 8
