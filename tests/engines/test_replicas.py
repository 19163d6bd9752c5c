"""Copies of an engine: one that fails leaves the others in step."""

import json
import os
import signal

import pytest

from tests.conftest import ROOT
from workbench.config import EngineConfig
from workbench.engines import Request, open_engine

POCKET = ROOT / "data" / "pocket"


@pytest.fixture
def copies():
    made = open_engine(POCKET / "model", EngineConfig(kind="transformers", data_parallel=2), threads=2)
    yield made
    made.close()


def test_after_an_error_every_answer_is_to_its_own_question(copies, tmp_path):
    lines = (POCKET / "tasks" / "pocket_steps.test.jsonl").read_text().splitlines()[:4]
    asked = [Request(f"Question: {json.loads(line)['question']}\nAnswer:") for line in lines]
    before = copies.generate(asked, max_new_tokens=24)
    with pytest.raises(ValueError, match=r"copy 0 of the engine: .*; copy 1 of the engine: "):
        copies.load(tmp_path / "nothing")
    copies.load(POCKET / "model")
    assert copies.generate(asked, max_new_tokens=24) == before
    assert copies.generate(asked[::-1], max_new_tokens=24) == before[::-1]


def test_a_copy_that_died_is_one_sentence(copies):
    os.kill(copies.processes[0].pid, signal.SIGKILL)
    copies.processes[0].join()
    with pytest.raises(ValueError, match=r"copy 0 of the engine: died \(exit code -9\); see the phase's log"):
        copies.generate([Request("Question: 1 + 1?\nAnswer:")], max_new_tokens=4)
