"""Merging checkpoints on disk: the same file however it is computed, and nothing half-written."""

import errno
import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from workbench.core import recipe as recipes
from workbench.core.dare import merge_tensor
from workbench.core.recipe import Recipe
from workbench.merging import files as merge_files
from workbench.merging import stream as merging
from workbench.settings import merge_config

POCKET = Path(__file__).parents[2] / "data" / "pocket" / "model"


def merge_checkpoints(base, start, sft, out, recipe, **options):
    """One merge to a directory; its report."""
    return merge_files.merge_checkpoints(base, start, sft, {out: recipe}, **options)[0]


def write(folder: Path, tensors: dict, shards: int = 1) -> Path:
    """A checkpoint directory, in one file or several."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"architectures": ["Qwen2ForCausalLM"], "tie_word_embeddings": false}')
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return folder
    names = list(tensors)
    weight_map = {}
    for i in range(shards):
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        mine = {name: tensors[name] for name in names[i::shards]}
        save_file(mine, folder / file)
        weight_map |= dict.fromkeys(mine, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def models(dtype=torch.bfloat16, seed=0):
    rng = torch.Generator().manual_seed(seed)
    shapes = {"a.weight": (70, 30), "b.bias": (5,), "c.scalar": (), "d.weight": (3, 2, 4)}
    base = {name: torch.randn(shape, generator=rng).to(dtype) for name, shape in shapes.items()}
    start = {name: (x.float() + 0.1 * torch.randn(x.shape, generator=rng)).to(dtype) for name, x in base.items()}
    sft = {name: (x.float() + 0.1 * torch.randn(x.shape, generator=rng)).to(dtype) for name, x in start.items()}
    return base, start, sft


def three(folder: Path, shards=(1, 1, 1), **kinds):
    return [write(folder / n, t, s) for n, t, s in zip("bsf", models(**kinds), shards, strict=True)]


@given(
    st.sampled_from([torch.bfloat16, torch.float16, torch.float32]),
    st.tuples(*[st.integers(1, 3)] * 3),
    st.floats(0, 1),
    st.floats(0, 0.95),
    st.integers(0, 2**31),
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_disk_equals_memory_for_any_sharding(tmp_path_factory, dtype, shards, alpha, drop_rate, seed):
    folder, recipe = tmp_path_factory.mktemp("m"), Recipe(alpha, drop_rate, seed)
    merge_checkpoints(*three(folder, shards, dtype=dtype), folder / "out", recipe, threads=1)
    found, inputs = load_file(folder / "out" / "model.safetensors"), models(dtype=dtype)
    for name in inputs[0]:
        assert torch.equal(found[name], merge_tensor(*(m[name] for m in inputs), recipe, name)), name


def test_threads_and_shards_give_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(recipes, "CHUNK", 64)
    monkeypatch.setattr(merging, "PART", 256)
    one = merge_checkpoints(*three(tmp_path / "x"), tmp_path / "o1", Recipe(0.5, 0.2, 3), threads=1)
    many = merge_checkpoints(*three(tmp_path / "y", (3, 1, 2)), tmp_path / "o2", Recipe(0.5, 0.2, 3), threads=16)
    assert one["sha256"] == many["sha256"]
    assert one["moved_from_base"] == many["moved_from_base"]
    monkeypatch.undo()
    whole = merge_checkpoints(*three(tmp_path / "z"), tmp_path / "o3", Recipe(0.5, 0.2, 3), threads=1)
    assert whole["sha256"] == one["sha256"]


def test_several_recipes_in_one_pass_and_in_memory_are_the_same(tmp_path):
    paths = three(tmp_path)
    several = [
        Recipe(0.5, 0.2, 3),
        Recipe(0.1, 0.9, 4),
        Recipe(0.5, 0.0, 0, rule="slerp"),
        Recipe(0.3, 0.7, 0, rule="ties"),
    ]
    outs = {tmp_path / f"many{n}": recipe for n, recipe in enumerate(several)}
    reports = merge_files.merge_checkpoints(*paths, outs)
    for n, recipe in enumerate(several):
        alone = merge_checkpoints(*paths, tmp_path / f"one{n}", recipe)
        assert alone["sha256"] == reports[n]["sha256"]
        written = load_file(tmp_path / f"one{n}" / "model.safetensors")
        for entry, array in merging.merged_tensors(merging.open_models(*paths), recipe):
            assert written[entry.name].flatten().view(torch.uint16).numpy().tobytes() == array.tobytes()


def test_ends_of_alpha(tmp_path):
    paths, (base, _, sft) = three(tmp_path), models()
    at_base = merge_checkpoints(*paths, tmp_path / "one", Recipe(1.0, 0.5, 0))
    at_sft = merge_checkpoints(*paths, tmp_path / "zero", Recipe(0.0, 0.0, 0))
    assert at_base["identical_to_base"] and not at_base["identical_to_sft"]
    assert at_sft["identical_to_sft"] and not at_sft["identical_to_base"]
    ones, zeros = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "zero"))
    assert all(torch.equal(ones[n], base[n]) and torch.equal(zeros[n], sft[n]) for n in base)


def test_a_merged_pocket_model_loads_and_its_report_holds(tmp_path):
    sft = tmp_path / "sft"
    shutil.copytree(POCKET, sft)
    tensors = load_file(sft / "model.safetensors")
    rng = torch.Generator().manual_seed(0)
    tensors = {n: (x.float() + 0.02 * torch.randn(x.shape, generator=rng)).to(x.dtype) for n, x in tensors.items()}
    save_file(tensors, sft / "model.safetensors", metadata={"format": "pt"})
    report = merge_checkpoints(POCKET, POCKET, sft, tmp_path / "out", Recipe(0.3, 0.9, 1))
    assert report["drop_rate_achieved"] == pytest.approx(0.9, abs=2e-3)
    assert report["delta_norm_after_dare"] == pytest.approx(report["delta_norm"] * 10**0.5, rel=0.01)
    assert report["moved_from_base"] == pytest.approx(report["moved_from_base_expected"], rel=0.01)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    assert json.loads((tmp_path / "out" / "merge.json").read_text())["sha256"] == report["sha256"]


def test_models_that_do_not_fit_are_named(tmp_path):
    base, start, sft = models()
    paths = three(tmp_path)
    other = write(tmp_path / "other", sft | {"a.weight": torch.zeros(71, 30)})
    with pytest.raises(ValueError, match=r"'a.weight' is \[71, 30\] in .*other.* but \[70, 30\]"):
        merge_checkpoints(paths[0], paths[1], other, tmp_path / "out", Recipe(0.5, 0.2, 0))
    fewer = write(tmp_path / "fewer", {n: x for n, x in sft.items() if n != "b.bias"})
    with pytest.raises(ValueError, match="fewer has no tensor 'b.bias'"):
        merge_checkpoints(paths[0], paths[1], fewer, tmp_path / "out", Recipe(0.5, 0.2, 0))
    (other / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    with pytest.raises(ValueError, match="only checkpoints of one architecture"):
        merge_checkpoints(paths[0], paths[1], other, tmp_path / "out", Recipe(0.5, 0.2, 0))
    assert not (tmp_path / "out").exists()


def test_broken_files_are_named(tmp_path):
    paths = three(tmp_path, (1, 1, 2))
    shard = paths[2] / "model-00002-of-00002.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-10])
    with pytest.raises(ValueError, match="00002-of-00002.safetensors is truncated: tensor"):
        merge_checkpoints(*paths, tmp_path / "out", Recipe(0.5, 0.2, 0))
    shard.write_bytes(whole[:8] + b"x" * (len(whole) - 8))
    with pytest.raises(ValueError, match="is corrupt: its header is not JSON"):
        merge_checkpoints(*paths, tmp_path / "out", Recipe(0.5, 0.2, 0))
    shard.unlink()
    with pytest.raises(ValueError, match="00002-of-00002.safetensors is missing"):
        merge_checkpoints(*paths, tmp_path / "out", Recipe(0.5, 0.2, 0))
    (paths[1] / "model.safetensors").rename(paths[1] / "pytorch_model.bin")
    with pytest.raises(ValueError, match="pickle files only"):
        merge_checkpoints(paths[0], paths[1], paths[0], tmp_path / "out", Recipe(0.5, 0.2, 0))


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(merge_files.os, "posix_fallocate", full)
    with pytest.raises(OSError, match="no space for 1 merged checkpoint"):
        merge_checkpoints(*three(tmp_path), tmp_path / "out", Recipe(0.5, 0.2, 0))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "f", "s"]


def test_a_disk_that_fills_up_half_way_leaves_nothing_behind(tmp_path, monkeypatch):
    append = merge_files._WeightsFile.append

    def full_after_a_while(self, data):
        if self.stream.tell() > 500:
            raise OSError(errno.ENOSPC, "No space left on device")
        append(self, data)

    monkeypatch.setattr(merge_files._WeightsFile, "append", full_after_a_while)
    with pytest.raises(OSError, match="no space for 1 merged checkpoint"):
        merge_checkpoints(*three(tmp_path), tmp_path / "out", Recipe(0.5, 0.2, 0))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "f", "s"]


def test_an_output_that_is_not_empty_is_left_alone(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="out exists and is not empty"):
        merge_checkpoints(*three(tmp_path), tmp_path / "out", Recipe(0.5, 0.2, 0))
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_deleted_weights_are_made_again_identical(tmp_path):
    paths, out = three(tmp_path), tmp_path / "out"
    merge_checkpoints(*paths, out, Recipe(0.3, 0.4, 9, module_factors=(("a", 0.5),)))
    before = (out / "model.safetensors").read_bytes()
    (out / "model.safetensors").unlink()
    merge_files.remake(out)
    assert (out / "model.safetensors").read_bytes() == before
    (out / "model.safetensors").unlink()
    save_file(models(seed=1)[2], paths[2] / "model.safetensors")
    with pytest.raises(ValueError, match="base, start or sft has changed"):
        merge_files.remake(out)
    assert not (out / "model.safetensors").exists()


def test_ties_keeps_the_largest_changes_of_the_whole_model(tmp_path):
    base, start, sft = models(dtype=torch.float32)
    merge_checkpoints(*three(tmp_path, dtype=torch.float32), tmp_path / "out", Recipe(0.0, 0.7, 0, rule="ties"))
    merged = load_file(tmp_path / "out" / "model.safetensors")
    magnitudes = torch.cat([(sft[n] - start[n]).abs().flatten() for n in base]).sort().values
    limit = magnitudes[int(0.7 * len(magnitudes))]
    for name in base:
        keep = (sft[name] - start[name]).abs() >= limit
        assert torch.equal(merged[name], torch.where(keep, sft[name], start[name]))


def test_slerp_goes_along_the_arc(tmp_path):
    base = {"a.weight": torch.tensor([1.0, 0.0])}
    sft = {"a.weight": torch.tensor([0.0, 1.0])}
    paths = [write(tmp_path / name, tensors) for name, tensors in (("b", base), ("f", sft))]
    merge_checkpoints(paths[0], paths[0], paths[1], tmp_path / "out", Recipe(0.25, 0.0, 0, rule="slerp"))
    merged = load_file(tmp_path / "out" / "model.safetensors")["a.weight"]
    angle = 0.75 * math.pi / 2
    assert torch.allclose(merged, torch.tensor([math.cos(angle), math.sin(angle)]))


def test_profiles(tmp_path):
    names = [f"model.layers.{n}.mlp.up_proj.weight" for n in range(3)]
    base = {name: torch.zeros(2, 2) for name in names}
    sft = {name: torch.full((2, 2), change) for name, change in zip(names, (1.0, 2.0, 4.0), strict=True)}
    sides = [write(tmp_path / name, tensors) for name, tensors in (("b", base), ("f", sft))]
    opened = merging.open_models(sides[0], sides[0], sides[1])

    def alphas(**settings):
        return merging.recipe_for(opened, merge_config(settings), 0).layer_alphas

    assert alphas(profile="points", points=[0.2, 0.8]) == pytest.approx((0.2, 0.5, 0.8))
    assert alphas(profile="inverse_change", alpha=0.35) == pytest.approx((0.6, 0.3, 0.15))
    recipe = merging.recipe_for(opened, merge_config({"profile": "points", "points": [0, 1], "drop_rate": 0}), 0)
    report = merge_checkpoints(sides[0], sides[0], sides[1], tmp_path / "out", recipe)
    assert report["moved_from_base"] == pytest.approx(report["moved_from_base_expected"])
    with pytest.raises(ValueError, match="points and profile"):
        merge_config({"points": [0.5]})


@pytest.mark.parametrize("rslora", [False, True])
def test_an_adapter_merges_like_its_folded_model(tmp_path, rslora):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(POCKET, dtype=torch.float32)
    targets = ["q_proj", "down_proj"]
    tuned = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=targets, use_rslora=rslora,
                                             alpha_pattern={"layers.1.mlp.down_proj": 3}))  # fmt: skip
    for name, weight in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    tuned.save_pretrained(tmp_path / "adapter")
    recipe = Recipe(0.3, 0.5, 1)
    merge_checkpoints(POCKET, POCKET, tmp_path / "adapter", tmp_path / "out", recipe)
    folded = tuned.merge_and_unload().state_dict()
    start, merged = load_file(POCKET / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    for name, weight in start.items():
        expected = merge_tensor(weight.float(), weight.float(), folded[name], recipe, name).to(torch.bfloat16)
        assert torch.allclose(merged[name].float(), expected.float(), rtol=2**-7, atol=1e-5), name
    assert any(not torch.equal(merged[name], start[name]) for name in start)
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")


def test_adapters_that_do_not_fit_are_named(tmp_path):
    adapter, paths = tmp_path / "adapter", three(tmp_path)
    adapter.mkdir()
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 2}
    tensors = {
        "base_model.model.a.lora_A.weight": torch.zeros(2, 31),
        "base_model.model.a.lora_B.weight": torch.zeros(70, 2),
    }
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    save_file(tensors, adapter / "adapter_model.safetensors")
    with pytest.raises(
        ValueError, match=r"'base_model.model.a.lora_A.weight' is \[2, 31\], which does not fit 'a.weight'"
    ):
        merge_checkpoints(paths[0], paths[1], adapter, tmp_path / "out", Recipe(0.5, 0.2, 0))
    (adapter / "adapter_config.json").write_text(json.dumps(settings | {"use_dora": True}))
    with pytest.raises(ValueError, match="use_dora = True is not supported"):
        merge_checkpoints(paths[0], paths[1], adapter, tmp_path / "out", Recipe(0.5, 0.2, 0))
