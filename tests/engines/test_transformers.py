"""The transformers engine against plain `generate`, and against itself in other company."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from workbench.core.prompts import Prompts, instruction_prompt
from workbench.engines import Request, adapter_base
from workbench.engines.transformers import STOP_EVERY, TransformersEngine

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
    prompts = [Prompts().prompt(row["question"], shots) for row in rows[3:9]]
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


def test_a_batch_ends_with_its_longest_answer(engine, rows, monkeypatch):
    """An answer that has ended stays ended, whatever its row goes on to write."""
    passes = []
    forward = engine._forward
    monkeypatch.setattr(engine, "_forward", lambda *given: passes.append(given[0].shape[1]) or forward(*given))
    asked = [Request(instruction_prompt(row["question"]), 0.6, seed) for seed in (1, 2) for row in rows]
    made = engine.generate(asked, max_new_tokens=160, stop=("\nQuestion:",))
    assert all(answer.finished for answer in made)
    assert passes.count(1) <= max(answer.num_tokens for answer in made) + STOP_EVERY < 100


def test_tokens_are_counted_up_to_the_stop_string(engine, rows):
    prompt = instruction_prompt(rows[0]["question"])
    cut = engine.generate([Request(prompt)], max_new_tokens=40, stop=("answer",))[0]
    just = engine.generate([Request(prompt)], max_new_tokens=cut.num_tokens, stop=("answer",))[0]
    less = engine.generate([Request(prompt)], max_new_tokens=cut.num_tokens - 1, stop=("answer",))[0]
    assert just == cut and not less.finished


def test_no_answer_goes_beyond_the_context(engine, rows):
    texts = [instruction_prompt(row["question"]) for row in rows]
    lengths = [len(engine.tokenizer(text)["input_ids"]) for text in texts]
    assert engine.limit == engine.model.config.max_position_embeddings
    narrow = TransformersEngine(POCKET / "model", "float32", threads=1, max_model_len=min(lengths) + 4)
    made = narrow.generate([Request(text) for text in texts], max_new_tokens=40)
    whole = engine.generate([Request(text) for text in texts], max_new_tokens=40)
    for length, short, full in zip(lengths, made, whole, strict=True):
        room = max(0, narrow.limit - length)
        assert short.num_tokens == room and not short.finished and full.text.startswith(short.text)
    assert {short.num_tokens for short in made} > {0, 4}


def test_an_empty_prompt_is_answered_and_changes_no_other(engine, rows):
    asked = Request(instruction_prompt(rows[0]["question"]))
    empty, beside = engine.generate([Request(""), asked], max_new_tokens=8)
    assert [empty, beside] == [engine.generate([one], max_new_tokens=8)[0] for one in (Request(""), asked)]
    assert empty.num_tokens


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub cache with the pocket model in it, as `made-up/pocket`; the network is not asked."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    place = tmp_path / "models--made-up--pocket"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("0" * 40)
    shutil.copytree(POCKET / "model", place / "snapshots" / ("0" * 40))
    return place / "snapshots" / ("0" * 40)


def test_the_base_of_an_adapter_may_be_named_as_on_the_hub(hub, tmp_path):
    def adapter(base):
        (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
        return tmp_path

    assert adapter_base(adapter("made-up/pocket")) == hub
    assert adapter_base(adapter("data/pocket/model")) == POCKET / "model"
    with pytest.raises(ValueError, match="base_model_name_or_path in .* is None; set it to the directory or hub name"):
        adapter_base(adapter(None))
    with pytest.raises(ValueError, match="base_model_name_or_path in .*could not be fetched from the Hugging Face hub"):
        adapter_base(adapter("made-up/other"))


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
