"""Merging checkpoints on disk: the same file however it is computed, and nothing half-written."""

import errno
import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from workbench.core.dare import Recipe, merge_tensor
from workbench.phases import merge
from workbench.phases.merge import merge_checkpoints

POCKET = Path(__file__).parents[2] / "data" / "pocket" / "model"


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
    monkeypatch.setattr(merge, "CHUNK", 64)
    monkeypatch.setattr(merge, "TASK_ENTRIES", 256)
    one = merge_checkpoints(*three(tmp_path / "x"), tmp_path / "o1", Recipe(0.5, 0.2, 3), threads=1)
    many = merge_checkpoints(*three(tmp_path / "y", (3, 1, 2)), tmp_path / "o2", Recipe(0.5, 0.2, 3), threads=16)
    assert one["sha256"] == many["sha256"]
    assert one["moved_from_base"] == many["moved_from_base"]


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

    monkeypatch.setattr(merge.os, "posix_fallocate", full)
    with pytest.raises(OSError, match="no space for the merged checkpoint"):
        merge_checkpoints(*three(tmp_path), tmp_path / "out", Recipe(0.5, 0.2, 0))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "f", "s"]
