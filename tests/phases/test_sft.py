"""Fine-tuning: what is learned from, and that a resumed phase ends where an uninterrupted one does."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from workbench.config import SftConfig
from workbench.events import read_lines
from workbench.jobs import Checkpoint, SftJob
from workbench.phases import sft
from workbench.rundir import PhaseDir

POCKET = Path(__file__).parents[2] / "data" / "pocket"


def prepare(folder: Path, **settings) -> PhaseDir:
    """A phase directory with a job that trains on 48 reference solutions."""
    place = PhaseDir(folder / "iteration_1" / "sft", 1, "sft")
    place.path.mkdir(parents=True)
    lines = (POCKET / "tasks" / "pocket_steps.train.jsonl").read_text().splitlines()[:48]
    solutions = folder / "solutions.jsonl"
    with solutions.open("w") as file:
        for i, row in enumerate(map(json.loads, lines)):
            kept = {"question_id": str(i), "sample": 0, "question": row["question"], "text": row["solution"]}
            file.write(json.dumps(kept | {"kept": i % 4 != 3}) + "\n")
    job = SftJob(
        start=Checkpoint(checkpoint_id="r/0/base", kind="base", path=str(POCKET / "model")),
        solutions=(str(solutions),),
        iteration=1,
        seed=0,
        sft=SftConfig(**{"batch_size": 4, "accumulation": 1, "learning_rate": 1e-4} | settings),
        threads=1,
    )
    place.job.write_text(job.model_dump_json())
    return place


def spawn(place: PhaseDir) -> subprocess.Popen:
    """The phase as the runner starts it."""
    with place.log.open("ab") as log:
        command = [sys.executable, "-m", "workbench.phases.sft", str(place.path)]
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)


def losses(place: PhaseDir) -> dict[int, float]:
    """Loss by step; the last report of a step counts."""
    return {row["step"]: row["value"] for row in read_lines(place.events)[0] if row["name"] == "loss"}


def test_only_kept_solutions_and_only_response_tokens_are_learned(tmp_path):
    place = prepare(tmp_path)
    tokenizer = sft.AutoTokenizer.from_pretrained(POCKET / "model")
    job = SftJob.model_validate_json(place.job.read_text())
    examples, left_out = sft.training_examples(job, tokenizer)
    assert (len(examples), left_out) == (36, 0)
    for example in examples:
        learned = [token for token in example["labels"] if token != -100]
        text = tokenizer.decode(learned)
        assert example["input_ids"][-len(learned) :] == learned
        assert text.endswith(tokenizer.eos_token) and "Question:" not in text and "The answer is" in text


def test_nothing_kept_is_a_clear_error(tmp_path):
    place = prepare(tmp_path)
    job = SftJob.model_validate_json(place.job.read_text())
    empty = tmp_path / "none.jsonl"
    empty.write_text("")
    tokenizer = sft.AutoTokenizer.from_pretrained(POCKET / "model")
    with pytest.raises(ValueError, match="no sampled solution was correct"):
        sft.training_examples(job.model_copy(update={"solutions": (str(empty),)}), tokenizer)


def test_killed_phase_resumes_to_the_same_weights(tmp_path):
    whole = prepare(tmp_path / "whole", save_every_steps=5)
    assert spawn(whole).wait() == 0
    broken = prepare(tmp_path / "broken", save_every_steps=5)
    process = spawn(broken)
    deadline = time.time() + 120
    while sft.last_complete(broken.path / "trainer") is None and time.time() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not broken.result.exists()
    assert spawn(broken).wait() == 0
    assert losses(broken) == losses(whole)
    first, second = (load_file(p.checkpoint / "model.safetensors") for p in (whole, broken))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
