"""What cannot be merged is refused in a sentence, before anything is written, and best before a run's work."""

import json
import math
import shutil
from dataclasses import fields

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from tests.conftest import CASES, ROOT, needs_cases, small_config, wait_for_end
from tests.phases.test_merge import three, write
from tests.test_cli import workbench
from workbench import checks, launch
from workbench.analysis.change import open_pair, weight_change
from workbench.checkpoints import CheckpointReader
from workbench.config import EngineConfig
from workbench.core.recipe import Recipe
from workbench.labdir import LabConfig, Point
from workbench.merging.adapters import PLAIN, WITHOUT_BEARING, AdapterReader
from workbench.merging.files import merge_checkpoints, remake
from workbench.merging.stream import merged_tensors, open_models, pair_moments
from workbench.phases.measuring import Measuring
from workbench.phases.saved_again import check_saved_again
from workbench.rundir import find_run
from workbench.settings import merge_config

POCKET = ROOT / "data" / "pocket" / "model"
RECIPE = Recipe(0.5, 0.2, 0)
NOT_PLAIN = ("pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga", "of_next_year")


def merge(paths, out, recipe=RECIPE):
    return merge_checkpoints(*paths, {out: recipe})[0]


def refused(paths, match, recipe=RECIPE):
    """Refused in these words, with nothing left beside the inputs."""
    folder = paths[0].parent
    before = sorted(folder.iterdir())
    with pytest.raises(ValueError, match=match):
        merge(paths, folder / "out", recipe)
    assert sorted(folder.iterdir()) == before


def changed(path, change):
    """A checkpoint with its tensors changed in place."""
    save_file(change(load_file(path / "model.safetensors")), path / "model.safetensors", metadata={"format": "pt"})


def llama(folder, **settings):
    """A tiny model as transformers saves it."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "vocab_size": 64}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 2, "bos_token_id": 0, "eos_token_id": 1}
    model = AutoModelForCausalLM.from_config(LlamaConfig(**sizes | settings))
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("side", [0, 1, 2])
@pytest.mark.parametrize(
    ("name", "codes"),
    [
        ("a.weight", torch.zeros(70, 30, dtype=torch.float8_e4m3fn)),
        ("a.weight", torch.zeros(70, 30, dtype=torch.int8)),
        ("layers.0.a.qzeros", torch.zeros(7, 3, dtype=torch.int32)),
        ("layers.0.a.blocks", torch.zeros(7, 3, 2, 2, dtype=torch.uint8)),
        ("a.scale", torch.zeros(70, dtype=torch.float8_e5m2)),
    ],
)
def test_quantised_weights_are_refused_on_any_side(tmp_path, side, name, codes):
    paths = three(tmp_path)
    changed(paths[side], lambda tensors: tensors | {name: codes})
    refused(paths, rf"/{'bsf'[side]}/model.safetensors: .*{name} is [UIF].*not quantised")


def test_a_config_that_says_quantised_is_refused(tmp_path):
    paths = three(tmp_path)
    config = json.loads((paths[1] / "config.json").read_text()) | {"quantization_config": {"quant_method": "fp8"}}
    (paths[1] / "config.json").write_text(json.dumps(config))
    refused(paths, r"s/config.json has a quantization_config \(fp8\)")


def test_whole_numbers_are_copied_only_where_all_sides_hold_them_alike(tmp_path):
    paths = three(tmp_path)
    for path in paths:
        changed(path, lambda tensors: tensors | {"mask": torch.ones(3, dtype=torch.bool)})
    assert merge(paths, tmp_path / "out")["num_tensors_copied"] == 1
    changed(paths[2], lambda tensors: tensors | {"mask": torch.ones(3)})
    shutil.rmtree(tmp_path / "out")
    refused(paths, "tensor 'mask' is F32 in .* but BOOL in ")


@pytest.mark.parametrize("side", [0, 1, 2])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused_with_its_side(tmp_path, side, alpha, value):
    paths = three(tmp_path, (1, 2, 1))

    def damage(tensors):
        tensors["d.weight"][1, 0, 2] = value
        return tensors

    file = next(f for f in sorted(paths[side].glob("*.safetensors")) if "d.weight" in load_file(f))
    save_file(damage(load_file(file)), file)
    said = rf"{file.name}: d.weight holds NaN or infinity in .*/{'bsf'[side]};"
    refused(paths, said, Recipe(alpha, 0.2, 0))
    opened = open_models(*paths)
    for work in (lambda: list(merged_tensors(opened, RECIPE)), lambda: pair_moments(opened)):
        with pytest.raises(ValueError, match=said):
            work()


def test_remake_refuses_what_is_not_finite(tmp_path):
    paths, out = three(tmp_path), tmp_path / "out"
    merge(paths, out)
    (out / "model.safetensors").unlink()
    changed(paths[2], lambda tensors: tensors | {"b.bias": tensors["b.bias"] * math.nan})
    with pytest.raises(ValueError, match="b.bias holds NaN"):
        remake(out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "f", "out", "s"]
    assert not (out / "model.safetensors").exists()


@pytest.mark.parametrize(("dtype", "large"), [(torch.float16, 6e4), (torch.bfloat16, 3e38), (torch.float32, 3e38)])
def test_a_result_that_overflows_is_refused(tmp_path, dtype, large):
    zeros = {"a.weight": torch.zeros(4, 100, dtype=dtype)}
    paths = [
        write(tmp_path / "b", zeros),
        write(tmp_path / "s", {"a.weight": torch.full((4, 100), large, dtype=dtype)}),
    ]
    word = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32"}[dtype]
    sides = (paths[0], paths[0], paths[1])
    refused(sides, rf"a.weight merged with alpha 0 and drop_rate 0.5 .* {word}; give a lower", Recipe(0.0, 0.5, 0))
    assert merge(sides, tmp_path / "out", Recipe(0.0, 0.0, 0))["identical_to_sft"]


def test_the_command_ends_with_code_2_and_nothing_under_the_name(tmp_path):
    zeros = {"a.weight": torch.zeros(4, 100, dtype=torch.float16)}
    write(tmp_path / "b", zeros), write(tmp_path / "s", {"a.weight": zeros["a.weight"] + 6e4})
    words = ["--base", tmp_path / "b", "--sft", tmp_path / "s", "--out", tmp_path / "out", "--alpha", 0]
    done = workbench("merge", *words, "--drop-rate", 0.5)
    assert done.returncode == 2 and "give a lower drop_rate" in " ".join(done.stderr.split())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "s"]


def test_a_merge_refused_half_way_is_not_taken_for_the_one_before(tmp_path):
    base, sft = (pocket(tmp_path / name, {}) for name in ("base", "sft"))
    changed(base, lambda tensors: {name: tensor.half() for name, tensor in tensors.items()})
    changed(sft, lambda tensors: tensors | {"model.norm.weight": torch.full((256,), 6e4)})
    config = LabConfig(base=str(base), start=str(base), sft=str(sft), id_task=None, ood_tasks=())
    config = config.model_copy(update={"engine": EngineConfig(kind="transformers")})
    lab = Measuring(config, open_models(base, base, sft), None)

    def weights(**settings):
        engine = lab.engine_for(Point(merge=merge_config(settings)), str(settings))
        return {name: weight.clone() for name, weight in engine.model.state_dict().items()}

    first = weights(alpha=1)
    with pytest.raises(ValueError, match="model.norm.weight merged with alpha 0 and drop_rate 0.5"):
        weights(alpha=0, drop_rate=0.5)
    assert all(torch.equal(weight, first[name]) for name, weight in weights(alpha=1).items())


# Adapters


def adapter(folder, settings=None, tensors=None):
    """A pair on a.weight of `three`, (70, 30), with what PEFT writes down of it."""
    folder.mkdir()
    config = {key: value for key, value in LoraConfig(r=2, lora_alpha=4).to_dict().items() if key != "peft_type"}
    config |= {"peft_type": "LORA"} | (settings or {})
    (folder / "adapter_config.json").write_text(json.dumps(config))
    pair = {"A": torch.ones(2, 30), "B": torch.ones(70, 2)}
    named = {f"base_model.model.a.lora_{side}.weight": matrix for side, matrix in pair.items()}
    save_file(tensors(named) if tensors else named, folder / "adapter_model.safetensors")
    return folder


def test_every_setting_of_peft_is_taken_as_it_stands_by_itself(tmp_path):
    paths = three(tmp_path)
    merge((*paths[:2], adapter(tmp_path / "plain")), tmp_path / "out")
    known = {field.name for field in fields(LoraConfig)}
    assert known >= WITHOUT_BEARING | PLAIN.keys()
    for number, key in enumerate(sorted(known - WITHOUT_BEARING) + ["of_a_newer_peft"]):
        for empty in (None, False, [], {}):
            adapter(folder := tmp_path / f"{number}", {key: empty})
            AdapterReader(folder, CheckpointReader(paths[1]))
            shutil.rmtree(folder)
        refused(
            (*paths[:2], adapter(tmp_path / f"{number}", {key: [1]})), rf"/{number}: {key} = \[1\] is not supported"
        )


@pytest.mark.parametrize("name", NOT_PLAIN)
def test_adapters_that_begin_inside_the_base_are_refused(tmp_path, name):
    paths = three(tmp_path)
    refused((*paths[:2], adapter(tmp_path / "x", {"init_lora_weights": name})), f"init_lora_weights = {name} is not")


@pytest.mark.filterwarnings("ignore:.*eva")
@pytest.mark.parametrize("name", [True, False, *PLAIN["init_lora_weights"][2:]])
def test_the_others_leave_the_base_as_it_is(tmp_path, name):
    """That PEFT does: the rule above is only as right as this."""
    model = llama(tmp_path / "base")
    tuned = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=name))
    for key, weight in tuned.named_parameters():
        if "lora_" in key:
            torch.nn.init.normal_(weight, std=0.1)
    tuned.save_pretrained(tmp_path / "adapter")
    merge((tmp_path / "base", tmp_path / "base", tmp_path / "adapter"), tmp_path / "out", Recipe(0.0, 0.0, 0))
    merged, folded = load_file(tmp_path / "out" / "model.safetensors"), tuned.merge_and_unload().state_dict()
    assert all(torch.allclose(weight, folded[key], atol=1e-6) for key, weight in merged.items())


@pytest.mark.parametrize(
    ("settings", "tensors", "said"),
    [
        ({}, lambda t: {k: x for k, x in t.items() if "lora_A" in k}, "lora_A.weight' without its lora_B"),
        ({}, lambda t: {k: x for k, x in t.items() if "lora_B" in k}, "lora_B.weight' without its lora_A"),
        ({}, lambda t: t | {"base_model.model.a.lora_B.weight": torch.ones(70, 3)}, "ranks of .* differ"),
        ({}, lambda t: {k: x.to(torch.int8) for k, x in t.items()}, "lora_A.weight' is I8"),
        ({}, lambda t: t | {"base_model.model.e.base_layer.weight": torch.ones(2, 2)}, "heads are not supported"),
        ({"lora_alpha": None}, None, "gives a no scaling .*lora_alpha must be a number"),
        ({"alpha_pattern": {"(": 3}}, None, "gives a no scaling"),
        ({"alpha_pattern": ["a"]}, None, "gives a no scaling"),
        ({"alpha_pattern": {"a": "3"}}, None, "gives a no scaling"),
        ({}, lambda t: t | {"base_model.model.a.lora_A.weight": torch.full((2, 30), math.nan)},
         "adapter_model.safetensors: a.weight holds NaN or infinity in .*/x;"),
    ],
)  # fmt: skip
def test_a_damaged_adapter_is_one_sentence(tmp_path, settings, tensors, said):
    paths = three(tmp_path)
    refused((*paths[:2], adapter(tmp_path / "x", settings, tensors)), said)


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.parametrize("module", ["embed_tokens", "lm_head"])
def test_an_adapter_that_trains_one_end_of_a_tied_base_is_refused(tmp_path, module):
    for tied in (True, False):
        base, folder = tmp_path / f"base-{tied}", tmp_path / f"adapter-{tied}"
        settings = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=[module])
        get_peft_model(llama(base, tie_word_embeddings=tied), settings).save_pretrained(folder)
    sides = [tmp_path / f"{name}-True" for name in ("base", "base", "adapter")]
    refused(sides, rf"changes '.*{module}.weight', and .*base-True ties embedding and head")
    config = json.loads((tmp_path / "base-True" / "config.json").read_text())
    del config["tie_word_embeddings"]  # as published Gemma files: the class knows, and no head is there
    (tmp_path / "base-True" / "config.json").write_text(json.dumps(config))
    refused(sides, "ties embedding and head")
    merge([tmp_path / f"{name}-False" for name in ("base", "base", "adapter")], tmp_path / "out")


def test_layers_that_are_stored_transposed_are_refused_whatever_the_adapter_says(tmp_path):
    model = gpt2(tmp_path / "base")
    settings = LoraConfig(r=2, target_modules=["attn.c_proj"], fan_in_fan_out=True)
    get_peft_model(model, settings).save_pretrained(tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_config.json"
    for said in (True, False):  # a square weight fits either way
        file.write_text(json.dumps(json.loads(file.read_text()) | {"fan_in_fan_out": said}))
        refused((tmp_path / "base", tmp_path / "base", tmp_path / "adapter"), "fan_in_fan_out.* is not supported")


# Tied heads, and what transformers does not save again


def test_a_head_of_its_own_in_a_tied_model_is_refused(tmp_path, home):
    llama(tmp_path / "base", tie_word_embeddings=True)
    for name in ("copy", "apart"):
        shutil.copytree(tmp_path / "base", tmp_path / name)
        head = load_file(tmp_path / "base" / "model.safetensors")["model.embed_tokens.weight"] + (name == "apart")
        changed(tmp_path / name, lambda tensors, head=head: tensors | {"lm_head.weight": head})
    base, copy, apart = (tmp_path / name for name in ("base", "copy", "apart"))
    assert merge((copy, base, base), tmp_path / "out")["num_tensors_tied"] == 1
    for sides in ((apart, base, base), (base, apart, base), (base, base, apart)):
        refused(sides, "lm_head.weight unlike its embedding, while the model's config.json says tie_word_embeddings")
    said = [problem for problem in checks.findings(small_config(model=str(apart)), home)[0] if "unlike" in problem]
    assert len(said) == 1
    config = json.loads((apart / "config.json").read_text()) | {"quantization_config": {"quant_method": "left over"}}
    (apart / "config.json").write_text(json.dumps(config))
    assert all(row["change"] == 0 for row in weight_change(*open_pair(apart, apart))), "to compare needs plain weights"
    plain = small_config(model=str(apart), method="vanilla")
    assert not [problem for problem in checks.findings(plain, home)[0] if "unlike" in problem]


def gpt2(folder):
    torch.manual_seed(0)
    config = GPT2Config(n_layer=2, n_embd=16, n_head=2, vocab_size=64, n_positions=32, bos_token_id=0, eos_token_id=1)
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    return model


MASKS = {
    f"transformer.h.{n}.attn.{name}": mask.clone()
    for n in range(2)
    for name, mask in (("bias", torch.ones(1, 1, 32, 32).tril()), ("masked_bias", torch.tensor(-1e4)))
}
TABLES = {f"model.layers.{n}.self_attn.rotary_emb.inv_freq": torch.ones(4) for n in range(2)}


@pytest.mark.parametrize(
    ("make", "buffers"), [(gpt2, MASKS), (llama, TABLES | {"model.position_ids": torch.arange(8)[None]})]
)
def test_buffers_that_transformers_makes_anew_are_left_out(tmp_path, make, buffers):
    make(tmp_path / "sft")
    shutil.copytree(tmp_path / "sft", tmp_path / "base")
    changed(tmp_path / "base", lambda tensors: tensors | buffers)
    base, sft = tmp_path / "base", tmp_path / "sft"
    report = merge((base, base, sft), tmp_path / "out")
    assert report["num_tensors_copied"] == 0 and report["identical_to_sft"]
    assert load_file(tmp_path / "out" / "model.safetensors").keys() == load_file(sft / "model.safetensors").keys()
    assert all(row["change"] == 0 for row in weight_change(*open_pair(base, sft)))
    check_saved_again(base)
    own = json.loads((base / "config.json").read_text()) | {
        "auto_map": {"AutoConfig": "x.Y"},
        "model_type": "of_its_own",
    }
    (base / "config.json").write_text(json.dumps(own))
    assert CheckpointReader(base).entries.keys() >= buffers.keys(), "a model's own code may need them"


def test_what_transformers_saves_otherwise_is_named(tmp_path):
    gpt2(tmp_path / "published")
    check_saved_again(tmp_path / "published")
    changed(tmp_path / "published", lambda tensors: {n.removeprefix("transformer."): x for n, x in tensors.items()})
    with pytest.raises(ValueError, match=r"published holds 'h.0.* under this name.*load and save the model once"):
        check_saved_again(tmp_path / "published")
    for tied in (True, False):
        folder = tmp_path / f"tied-{tied}"
        llama(folder, tie_word_embeddings=tied)
        check_saved_again(folder)
        copy = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
        changed(folder, lambda tensors, copy=copy: {"lm_head.weight": copy} | tensors)
        check_saved_again(folder)
    gpt2(tmp_path / "silent")  # a class that ties where the config.json does not say
    said = json.loads((tmp_path / "silent" / "config.json").read_text())
    said = {key: value for key, value in said.items() if key != "tie_word_embeddings"}
    (tmp_path / "silent" / "config.json").write_text(json.dumps(said))
    check_saved_again(tmp_path / "silent")
    changed(
        tmp_path / "silent", lambda tensors: tensors | {"lm_head.weight": tensors["transformer.wte.weight"].clone()}
    )
    with pytest.raises(ValueError, match="does not say whether that is tied.* write tie_word_embeddings there"):
        check_saved_again(tmp_path / "silent")
    nested = said | {"text_config": {"tie_word_embeddings": True}}
    (tmp_path / "silent" / "config.json").write_text(json.dumps(nested))
    assert CheckpointReader(tmp_path / "silent").description.tied
    changed(folder, lambda tensors: {n: x for n, x in tensors.items() if n != "lm_head.weight"})
    config = json.loads((folder / "config.json").read_text())
    for said in (config, {key: value for key, value in config.items() if key != "tie_word_embeddings"}):
        (folder / "config.json").write_text(json.dumps(said))
        with pytest.raises(ValueError, match="has no tensor 'lm_head.weight', with which transformers would begin"):
            check_saved_again(folder)
    changed(folder, lambda tensors: tensors | {"lm_head.weight": torch.zeros(63, 16)})
    with pytest.raises(ValueError, match=r"'lm_head.weight' is \[63, 16\] in .* but \[64, 16\] by its config.json"):
        check_saved_again(folder)


def pocket(folder, extra):
    """The pocket model with more in its file."""
    shutil.copytree(POCKET, folder)
    changed(folder, lambda tensors: tensors | extra)
    return folder


def test_a_run_on_a_base_with_old_buffers_gets_through_its_merge(home, tmp_path):
    base = pocket(
        tmp_path / "old", {f"model.layers.{n}.self_attn.rotary_emb.inv_freq": torch.ones(32) for n in range(6)}
    )
    run_id = launch.launch(small_config(model=str(base), **{"analyze.enabled": False}), home)
    assert wait_for_end(home, run_id) == ("done", None)
    merged = find_run(home, run_id).phase(1, "merge").checkpoint
    assert load_file(merged / "model.safetensors").keys() == load_file(POCKET / "model.safetensors").keys()


def test_a_run_whose_merge_would_fail_ends_before_it_generates(home, tmp_path):
    base = pocket(tmp_path / "more", {"model.mtp.weight": torch.ones(4, 4)})
    run_id = launch.launch(small_config(model=str(base)), home)
    status, error = wait_for_end(home, run_id)
    assert status == "failed" and "holds 'model.mtp.weight', which transformers does not save again" in error
    run = find_run(home, run_id)
    assert not run.phase(0, "evaluate").outcomes.exists() and not run.phase(1, "sample").path.exists()


def test_a_launch_refuses_what_can_be_told_of_the_files(home, tmp_path):
    base = pocket(tmp_path / "quantised", {"model.layers.0.mlp.up_proj.qzeros": torch.ones(4, 4, dtype=torch.int32)})
    with pytest.raises(ValueError, match="qzeros is I32, .* not quantised"):
        launch.launch(small_config(model=str(base)), home)
    start = pocket(tmp_path / "start", {"model.layers.0.more.weight": torch.ones(4, 4)})
    with pytest.raises(ValueError, match="has no tensor 'model.layers.0.more.weight'"):
        launch.launch(small_config(start=str(start)), home)


# Inputs made anew from public bug reports


@needs_cases
@pytest.mark.parametrize(
    ("base", "sft", "said"),
    [
        ("llama_base", "ad_pissa", "init_lora_weights = pissa is not supported"),
        ("llama_base", "ad_alora", "alora_invocation_tokens = [5] is not supported"),
        ("llama_base", "ad_half", "q_proj.lora_A.weight' without its lora_B"),
        ("llama_base", "ad_head", "adapters of embeddings and heads are not supported"),
        ("llama_tied_base", "ad_mts_tied_emb", "ties embedding and head"),
        ("x_fp8b", "x_fp8s", "is F8_E4M3"),
        ("llama_base", "x_nan", "model.safetensors: model.norm.weight holds NaN or infinity in"),
        ("x_hugeb", "x_huges", "holds numbers too large for the base's F16"),
    ],
)
def test_cases_that_are_refused(tmp_path, base, sft, said):
    words = ["--base", CASES / "models" / base, "--sft", CASES / "models" / sft, "--out", tmp_path / "out"]
    done = workbench("merge", *words, "--alpha", 0, "--drop-rate", 0.5, "--seed", 1)
    assert done.returncode == 2 and said in " ".join(done.stderr.split()), done.stderr
    assert "Traceback" not in done.stderr and not list(tmp_path.iterdir())


@needs_cases
def test_the_case_of_a_base_with_inv_freq_is_merged(tmp_path):
    with_buffer, plain, sft = (CASES / "models" / name for name in ("x_extrab", "llama_base", "llama_sft"))
    found = merge((with_buffer, with_buffer, sft), tmp_path / "one", Recipe(0.5, 0.0, 0))
    assert found["sha256"] == merge((plain, plain, sft), tmp_path / "two", Recipe(0.5, 0.0, 0))["sha256"]
