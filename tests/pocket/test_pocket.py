"""What the shipped pocket tasks and model promise."""

import json
from itertools import islice
from pathlib import Path
from random import Random

import pytest

from workbench.engines import Request
from workbench.engines.transformers import TransformersEngine
from workbench.pocket.build import Recipe, build, documents, split_problems
from workbench.pocket.families import FAMILIES

POCKET = Path(__file__).parents[2] / "data" / "pocket"


def shipped(family: str, split: str) -> list[dict]:
    lines = (POCKET / "tasks" / f"{family}.{split}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("family", FAMILIES)
def test_no_question_is_in_two_splits(family):
    names = ("train", "validation", "test") if family == "pocket_steps" else ("validation", "test")
    splits = [{row["question"] for row in shipped(family, split)} for split in names]
    assert all(splits)
    assert sum(map(len, splits)) == len(set.union(*splits))


def test_pretraining_never_sees_a_held_out_question():
    splits, rest = split_problems(Recipe())
    held = {p.question for by_split in splits.values() for name in by_split for p in by_split[name]}
    seen = "".join(prompt for prompt, _ in islice(documents(Recipe(), rest), 3000))
    assert not any(question in seen for question in Random(0).sample(sorted(held), 500))


@pytest.mark.parametrize("family", FAMILIES)
def test_shipped_tasks_come_from_the_recipe(family):
    splits, _ = split_problems(Recipe())
    assert [p.question for p in splits[family]["test"]] == [row["question"] for row in shipped(family, "test")]


@pytest.mark.parametrize("family", FAMILIES)
def test_worked_solutions_end_in_their_answer(family):
    for row in shipped(family, "test"):
        assert row["solution"].rstrip(".)").endswith(row["answer"])


def test_shipped_files_are_small():
    assert sum(path.stat().st_size for path in POCKET.rglob("*") if path.is_file()) < 16e6


def test_a_build_depends_on_its_seed_alone(tmp_path):
    small = Recipe(
        train_questions=20, test_questions=10, validation_questions=5, vocab_size=400, hidden_size=32,
        intermediate_size=64, num_layers=2, tokens=24_576, batch_tokens=1024, row_tokens=128,
    )  # fmt: skip
    losses = []
    for name in ("first", "second"):
        build(tmp_path / name, small, lambda step, steps, loss: losses.append(loss))
    first, second = (tmp_path / name / "model" / "model.safetensors" for name in ("first", "second"))
    assert first.read_bytes() == second.read_bytes()
    assert losses[:24] == losses[24:] and losses[23] < losses[0]
    engine = TransformersEngine(tmp_path / "first" / "model", threads=1)
    assert engine.generate([Request("Question: 1 + 1?\nAnswer:")], max_new_tokens=4)[0].num_tokens <= 4
