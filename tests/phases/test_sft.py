"""Fine-tuning: what is learned from, and that a resumed phase ends where an uninterrupted one does."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import wait_until
from workbench.commands import phase_command, phase_environment
from workbench.config import DataConfig, SampleConfig, SftConfig
from workbench.events import event_log, read_lines
from workbench.jobs import Checkpoint, SftJob, TaskSource
from workbench.phases import sft, trainer
from workbench.phases.optimizer import MasterAdamW
from workbench.phases.process import run_phase
from workbench.phases.trainer import load
from workbench.phases.training_data import chosen_solutions, packed, padded, too_few_worked, training_examples
from workbench.rundir import PhaseDir

POCKET = Path(__file__).parents[2] / "data" / "pocket"


def prepare(folder: Path, count: int = 48, **settings) -> PhaseDir:
    """A phase directory with a job that trains on three quarters of `count` reference solutions."""
    place = PhaseDir(folder / "iteration_1" / "sft", 1, "sft")
    place.path.mkdir(parents=True)
    lines = (POCKET / "tasks" / "pocket_steps.train.jsonl").read_text().splitlines()[:count]
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
    job = SftJob.model_validate_json(place.job.read_text())
    with place.log.open("ab") as log:
        return subprocess.Popen(
            phase_command(place, job), env=phase_environment(job, 1), stdout=log, stderr=subprocess.STDOUT
        )


def train(place: PhaseDir) -> None:
    """The phase in this process, which has imported all it needs; one of its own takes as long to start as to train."""
    assert run_phase(place.path, SftJob, sft.run) is None


def losses(place: PhaseDir) -> dict[int, float]:
    """Loss by step; the last report of a step counts."""
    return {row["step"]: row["value"] for row in read_lines(place.events)[0] if row["name"] == "loss"}


def test_only_kept_solutions_and_only_response_tokens_are_learned(tmp_path):
    place = prepare(tmp_path)
    tokenizer = sft.AutoTokenizer.from_pretrained(POCKET / "model")
    job = SftJob.model_validate_json(place.job.read_text())
    examples, counts = training_examples(job, tokenizer)
    assert (len(examples), counts["num_left_out"]) == (36, 0)
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
        training_examples(job.model_copy(update={"solutions": (str(empty),)}), tokenizer)


def killed(place: PhaseDir) -> PhaseDir:
    """The phase, killed once its first optimizer checkpoint is there."""
    process = spawn(place)
    wait_until(lambda: sft.last_complete(place.path / "trainer") or process.poll() is not None, 120)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not place.result.exists() and sft.last_complete(place.path / "trainer"), place.log.read_text()
    return place


class Interrupted(Exception):
    """Training ends in the middle."""


def interrupted(place: PhaseDir) -> PhaseDir:
    """The phase, left at the first report after its first optimizer checkpoint."""
    job = SftJob.model_validate_json(place.job.read_text())
    log = event_log(place.events)

    def emit(name, value=None, step=0, **data):
        log(name, value, step, **data)
        if step > job.sft.save_every_steps:
            raise Interrupted

    with pytest.raises(Interrupted):
        sft.run(job, place, emit)
    assert sft.last_complete(place.path / "trainer") and not place.result.exists()
    return place


def same_weights(one: PhaseDir, other: PhaseDir) -> bool:
    first, second = (load_file(place.checkpoint / "model.safetensors") for place in (one, other))
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("broken_off", "settings"),
    [
        (killed, {}),
        (interrupted, {"accumulation": 2, "batch_size": 2, "batching": "packed", "count": 12, "epochs": 2}),
        (interrupted, {"lora": {"rank": 4, "dropout": 0.1}, "learning_rate": 1e-3, "weight_decay": 0.1}),
    ],
)
def test_broken_off_and_resumed_it_comes_to_the_same_weights(tmp_path, monkeypatch, broken_off, settings):
    if "accumulation" in settings:  # as on a GPU, also where the CPU has no bf16
        monkeypatch.setattr(trainer, "COMPUTE", torch.bfloat16)
    whole, broken = (prepare(tmp_path / name, save_every_steps=5, **settings) for name in ("whole", "broken"))
    train(whole)
    train(broken_off(broken))
    assert losses(broken) == losses(whole) and same_weights(broken, whole)


def test_a_phase_killed_after_its_last_step_is_finished(tmp_path, caplog):
    whole, broken = (prepare(tmp_path / name, 12, save_every_steps=50) for name in ("whole", "broken"))
    train(whole)
    job = SftJob.model_validate_json(broken.job.read_text())
    scratch = broken.path / "trainer"
    sft.forget_other_training(scratch, job, 1)
    examples, _ = training_examples(job, sft.AutoTokenizer.from_pretrained(job.start.path))
    torch.set_num_threads(1)
    sft.make_trainer(job, broken, lambda *_, **__: None, examples).train()  # and no more
    steps = json.loads(whole.result.read_text())["summary"]["num_steps"]
    assert Path(sft.last_complete(scratch)).name == f"checkpoint-{steps}"
    caplog.clear()
    train(broken)
    assert "begins anew" not in caplog.text and same_weights(broken, whole)


def test_optimizer_checkpoints_are_removed_at_once_or_not_at_all(tmp_path, monkeypatch):
    """Of one that is half removed the Trainer would take what is left, and the weights it began with for the rest."""
    scratch = tmp_path / "trainer"
    (scratch / "checkpoint-5").mkdir(parents=True)
    (scratch / "checkpoint-5" / "trainer_state.json").write_text("{}")
    monkeypatch.setattr(sft.shutil, "rmtree", lambda *_, **__: None)  # killed before it had removed a file
    sft.remove(scratch)
    assert sft.last_complete(scratch) is None


def test_training_that_was_interrupted_with_other_settings_begins_anew(tmp_path, caplog):
    broken = interrupted(prepare(tmp_path / "broken", save_every_steps=5))
    fresh = prepare(tmp_path / "fresh", epochs=1, batch_size=8, learning_rate=1e-5)
    broken.job.write_text(fresh.job.read_text())
    train(broken)
    assert "begins anew" in caplog.text
    train(fresh)
    assert same_weights(broken, fresh)


def test_every_response_token_of_a_step_weighs_alike(tmp_path):
    """Nine examples as 8 + 1 in one pass a step, and as 2 x 4 + 1: the last step has one pass of four."""
    places = [
        prepare(tmp_path / f"{size}", 12, batching="packed", batch_size=size, accumulation=8 // size, epochs=2)
        for size in (8, 2)
    ]
    for place in places:
        train(place)
    one, several = (losses(place) for place in places)
    assert one.keys() == several.keys() == {1, 4}  # the first, and the last whatever its number
    assert list(several.values()) == pytest.approx(list(one.values()), rel=0.01)


def test_training_that_diverges_is_one_sentence(tmp_path):
    place = prepare(tmp_path, 24, learning_rate=1e38)
    said = run_phase(place.path, SftJob, sft.run)
    assert "training has diverged; lower sft.learning_rate, got 1e+38" in said
    assert not place.checkpoint.exists()


@pytest.mark.parametrize("target", ["nope", "lm_head", "embed_tokens", "input_layernorm"])
def test_adapters_go_to_linear_weights_that_are_there(tmp_path, target):
    """The pocket model's head is its embeddings: an adapter folded into it would change both."""
    place = prepare(tmp_path, lora={"target_modules": ("q_proj", target)})
    with pytest.raises(ValueError, match=f"'{target}' is no linear weight that can have .* are q_proj, k_proj"):
        load(SftJob.model_validate_json(place.job.read_text()))


def test_the_optimizer_is_adamw_that_spares_norms_and_biases():
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=generator) for shape in ((4, 3), (3,), (2, 5), (5,))]
    params = [torch.nn.Parameter(tensor.bfloat16()) for tensor in start]
    ours = MasterAdamW(params, 0.1, 0.5, [tensor.clone() for tensor in start])
    plain = [torch.nn.Parameter(tensor.clone()) for tensor in start]
    groups = [{"params": plain[::2], "weight_decay": 0.5}, {"params": plain[1::2], "weight_decay": 0.0}]
    theirs = torch.optim.AdamW(groups, lr=0.1)
    for _ in range(3):
        for mine, other in zip(params, plain, strict=True):
            mine.grad = torch.randn(mine.shape, generator=generator).bfloat16()
            other.grad = mine.grad.float()
        ours.step()
        theirs.step()
    assert all(torch.allclose(m, p, atol=1e-6) for m, p in zip(ours.masters, plain, strict=True))
    assert all(torch.equal(p, m.bfloat16()) for p, m in zip(params, ours.masters, strict=True))


def test_packed_examples_have_the_loss_and_gradients_of_padded_ones(tmp_path):
    job = SftJob.model_validate_json(prepare(tmp_path).job.read_text())
    tokenizer = sft.AutoTokenizer.from_pretrained(POCKET / "model")
    examples, _ = training_examples(job, tokenizer)
    examples = sorted(examples, key=lambda e: len(e["input_ids"]))
    examples = [*examples[:6], examples[-1]]
    model = sft.AutoModelForCausalLM.from_pretrained(POCKET / "model", dtype=torch.float32)
    found = []
    for batch in (padded(examples), packed(examples[::-1])):
        model.zero_grad()
        loss = model(**batch, use_cache=False).loss
        loss.backward()
        found.append((batch["input_ids"].numel(), loss.item(), [p.grad.clone() for p in model.parameters()]))
    (many, plain, plain_grads), (few, close, close_grads) = found
    assert few < 0.85 * many
    assert close == pytest.approx(plain, rel=1e-5)
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-6) for a, b in zip(plain_grads, close_grads, strict=True))


def test_adapters_are_kept_and_the_checkpoint_is_the_start_with_them_folded_in(tmp_path):
    lora = {"rank": 4, "alpha": 8.0, "target_modules": ("q_proj", "down_proj")}
    place = prepare(tmp_path, lora=lora, batching="packed", gradient_checkpointing=True, learning_rate=5e-3, epochs=4)
    train(place)
    report = losses(place)
    assert report[max(report)] < 0.8 * report[1]
    start, tuned = (load_file(folder / "model.safetensors") for folder in (POCKET / "model", place.checkpoint))
    assert start.keys() == tuned.keys() and all(start[n].dtype == tuned[n].dtype for n in start)
    changed = {name for name in start if not torch.equal(start[name], tuned[name])}
    assert changed and all("q_proj.weight" in name or "down_proj.weight" in name for name in changed)
    assert any("q_proj" in name for name in changed) and any("down_proj" in name for name in changed)
    adapter = load_file(place.path / "adapter" / "adapter_model.safetensors")
    name = next(name for name in changed if "layers.0.self_attn.q_proj" in name)
    a, b = (next(v for k, v in adapter.items() if "layers.0.self_attn.q_proj" in k and f"lora_{x}" in k) for x in "AB")
    assert torch.allclose(tuned[name].float(), start[name].float() + 2.0 * b @ a, atol=1e-2, rtol=1e-2)
    assert (a.shape[0], b.shape[1]) == (4, 4)


def test_what_is_learned_from(tmp_path):
    """Earlier iterations' solutions by share, and worked ones of the train split by ratio."""
    rows = {1: range(40), 2: range(30, 50)}
    for iteration, ids in rows.items():
        lines = [{"question_id": str(i), "sample": 0, "question": f"q{i}", "text": f"a{i}", "kept": True} for i in ids]
        (tmp_path / f"{iteration}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    job = SftJob.model_validate_json(prepare(tmp_path).job.read_text()).model_copy(
        update={
            "solutions": (str(tmp_path / "2.jsonl"),),
            "earlier": (str(tmp_path / "1.jsonl"),),
            "train_task": TaskSource(task="pocket_steps"),
            "num_questions": 300,
            "sample": SampleConfig(few_shot=0),
        }
    )

    def counts(**changes):
        pairs, found = chosen_solutions(job.model_copy(update=changes))
        assert len(pairs) == len(set(pairs)) == sum(found.values())
        return tuple(found.values())

    assert counts() == (20, 30, 0)  # ten of the forty are there already
    assert counts(earlier=()) == (20, 0, 0)
    some = counts(earlier_share=0.5)
    assert some[0] == 20 and 10 <= some[1] <= 20
    assert chosen_solutions(job.model_copy(update={"earlier_share": 0.5})) == chosen_solutions(
        job.model_copy(update={"earlier_share": 0.5})
    )
    assert counts(data=DataConfig(real_share=0.5)) == (20, 30, 50)
    few = job.model_copy(update={"data": DataConfig(real_share=0.9)})
    assert counts(data=few.data) == (20, 30, 300)  # no more are there
    assert "are 86 % of what is learned from, and data.real_share asks for 90 %" in too_few_worked(
        few, chosen_solutions(few)[1]
    )
    half = job.model_copy(update={"data": DataConfig(real_share=0.5)})
    assert too_few_worked(half, chosen_solutions(half)[1]) is None
    assert counts(data=DataConfig(real_share=1), solutions=(), earlier=()) == (0, 0, 300)


@pytest.mark.slow
def test_two_processes_of_zero_3_give_the_losses_of_one(tmp_path):
    """Two ranks x batch 4 see what one sees with batch 4 x accumulation 2; ZeRO is really on."""
    one = prepare(tmp_path / "one", 32, batching="packed", batch_size=4, accumulation=2)
    two = prepare(tmp_path / "two", 32, batching="packed", batch_size=4, accumulation=1, zero=3, processes=2)
    train(one)
    assert spawn(two).wait() == 0, two.log.read_text()[-3000:]
    result = json.loads(two.result.read_text())["summary"]
    assert (result["zero_stage"], result["num_processes"]) == (3, 2)
    first, second = losses(one), losses(two)
    assert first.keys() == second.keys()
    assert [second[step] for step in first] == pytest.approx([first[step] for step in first], rel=2e-2)
    weights, sharded = (load_file(place.checkpoint / "model.safetensors") for place in (one, two))
    base = load_file(POCKET / "model" / "model.safetensors")
    assert weights.keys() == sharded.keys()
    moved = sum(float((weights[n].float() - base[n].float()).square().sum()) for n in base) ** 0.5
    apart = sum(float((weights[n].float() - sharded[n].float()).square().sum()) for n in base) ** 0.5
    assert apart < 0.2 * moved
    assert len(read_lines(two.events)[0]) == len(read_lines(one.events)[0])  # only the first process speaks


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"zero": 2, "lora": {"rank": 4}}, {"zero": 3, "offload": "all"}])
def test_other_settings_of_zero_train_and_resume(tmp_path, settings):
    place = prepare(tmp_path, accumulation=2, save_every_steps=2, **settings)
    process = spawn(place)
    compiled = 900  # the first time DeepSpeed compiles its optimizer for the CPU
    wait_until(lambda: sft.last_complete(place.path / "trainer") or process.poll() is not None, compiled)
    process.send_signal(signal.SIGTERM)
    process.wait()
    assert not place.result.exists(), "it ended before it could be interrupted"
    assert spawn(place).wait() == 0, place.log.read_text()[-3000:]
    result = json.loads(place.result.read_text())["summary"]
    assert (result["zero_stage"], result["num_processes"]) == (settings["zero"], 1)
    report = losses(place)
    assert report[max(report)] < report[1]
    start, tuned = (load_file(folder / "model.safetensors") for folder in (POCKET / "model", place.checkpoint))
    assert start.keys() == tuned.keys() and any(not torch.equal(start[name], tuned[name]) for name in start)


FAKE_SSH = """#!/bin/bash
while [[ $1 == -* ]]; do shift; [[ $1 == *=* ]] && shift; done
shift; exec bash -c "$*"
"""


@pytest.mark.slow
def test_a_host_file_goes_to_deepspeeds_launcher(tmp_path, monkeypatch):
    """One machine of two processes, reached by an ssh that stays here: there is no second machine."""
    ssh = tmp_path / "bin" / "ssh"
    ssh.parent.mkdir()
    ssh.write_text(FAKE_SSH)
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", f"{ssh.parent}:{os.environ['PATH']}")
    hosts = tmp_path / "hosts"
    hosts.write_text("localhost slots=2\n")
    place = prepare(tmp_path / "run", 24, zero=2, hostfile=str(hosts), epochs=1)
    assert spawn(place).wait() == 0, place.log.read_text()[-3000:]
    result = json.loads(place.result.read_text())["summary"]
    assert (result["zero_stage"], result["num_processes"]) == (2, 2)
