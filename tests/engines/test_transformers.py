"""The transformers engine against plain `generate`, and against itself in other company."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from workbench.core.prompts import few_shot_prompt, instruction_prompt
from workbench.engines import Request
from workbench.engines.transformers import TransformersEngine

POCKET = Path(__file__).parents[2] / "data" / "pocket"


@pytest.fixture(scope="module")
def engine():
    return TransformersEngine(POCKET / "model", "float32", threads=1)


@pytest.fixture(scope="module")
def rows():
    lines = (POCKET / "tasks" / "pocket_steps.train.jsonl").read_text().splitlines()[:12]
    return [json.loads(line) for line in lines]


def plain_greedy(prompt: str, max_new_tokens: int) -> str:
    """One prompt through transformers' own generate."""
    tokenizer = AutoTokenizer.from_pretrained(POCKET / "model")
    model = AutoModelForCausalLM.from_pretrained(POCKET / "model", dtype=torch.float32)
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_new_tokens, do_sample=False)
    return tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip()


def test_greedy_equals_generate_one_by_one(engine, rows):
    prompts = [instruction_prompt(row["question"]) for row in rows]
    batch = engine.generate([Request(p) for p in prompts], max_new_tokens=40)
    assert [g.text for g in batch] == [plain_greedy(p, 40) for p in prompts]


def test_shared_prefix_changes_nothing(engine, rows):
    shots = [(row["question"], row["solution"]) for row in rows[:3]]
    prompts = [few_shot_prompt(row["question"], shots) for row in rows[3:9]]
    batch = engine.generate([Request(p) for p in prompts], max_new_tokens=24)
    assert engine._prefix[0], "these prompts share their examples"
    assert [g.text for g in batch] == [plain_greedy(p, 24) for p in prompts]


def test_a_sample_depends_on_its_own_seed(engine, rows):
    prompt = instruction_prompt(rows[0]["question"])
    asked = [Request(prompt, temperature=1.0, seed=s) for s in (1, 2, 1, 3)]
    first = engine.generate(asked, max_new_tokens=32)
    again = engine.generate(asked, max_new_tokens=32)
    assert first == again
    assert first[0] == first[2]
    assert len({g.text for g in first}) > 1


def test_stop_string_and_length_limit(engine, rows):
    prompt = instruction_prompt(rows[0]["question"])
    whole = engine.generate([Request(prompt)], max_new_tokens=40)[0]
    cut = engine.generate([Request(prompt)], max_new_tokens=40, stop=("answer",))[0]
    short = engine.generate([Request(prompt)], max_new_tokens=3)[0]
    assert whole.finished and whole.text.startswith(cut.text) and "answer" not in cut.text
    assert not short.finished and short.num_tokens == 3


def test_loading_another_checkpoint_answers_like_a_fresh_engine(engine, rows, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(POCKET / "model")
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.02)
    model.save_pretrained(tmp_path)
    engine.tokenizer.save_pretrained(tmp_path)
    asked = [Request(instruction_prompt(row["question"])) for row in rows]
    swapped = TransformersEngine(POCKET / "model", "float32", threads=1)
    swapped.generate(asked, max_new_tokens=8)
    swapped.load(tmp_path)
    fresh = TransformersEngine(tmp_path, "float32", threads=1)
    assert swapped.generate(asked, max_new_tokens=32) == fresh.generate(asked, max_new_tokens=32)
