"""Weight change against numpy on the raw tensors."""

import math
import shutil

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.conftest import ROOT
from workbench.analysis.change import open_pair, weight_change

POCKET = ROOT / "data" / "pocket" / "model"


def norm(tensor):
    return float(np.linalg.norm(tensor.to(torch.float64).numpy().ravel()))


def by_place(rows):
    return {(row["layer"], row["module"]): row for row in rows}


@pytest.fixture(scope="module")
def moved(tmp_path_factory):
    """The pocket model with every weight a little off."""
    path = tmp_path_factory.mktemp("moved")
    model = AutoModelForCausalLM.from_pretrained(POCKET, dtype=torch.bfloat16)
    torch.manual_seed(0)
    for weight in model.parameters():
        weight.data += 0.02 * torch.randn_like(weight)
    model.save_pretrained(path)
    return path


def test_it_equals_numpy_on_the_raw_tensors(moved):
    found = by_place(weight_change(*open_pair(POCKET, moved)))
    left, right = (load_file(path / "model.safetensors") for path in (POCKET, moved))
    delta = {name: right[name].double() - left[name].double() for name in left if name in right}
    name = "model.layers.3.mlp.down_proj.weight"
    assert found[3, "down_proj"]["change"] == pytest.approx(norm(delta[name]), rel=1e-6)
    assert found[3, "down_proj"]["norm"] == pytest.approx(norm(left[name]), rel=1e-6)
    linear = [n for n in delta if n.startswith("model.layers.3.") and delta[n].dim() == 2]
    assert len(linear) == 7
    assert found[3, "all"]["change"] == pytest.approx(sum(norm(delta[n]) for n in linear), rel=1e-6)
    assert found[3, "all"]["change"] == pytest.approx(
        sum(row["change"] for (layer, module), row in found.items() if layer == 3 and module != "all")
    )
    norms = [n for n in delta if delta[n].dim() == 1 and n.endswith("weight")]
    assert found[None, "norms"]["change"] == pytest.approx(math.hypot(*(norm(delta[n]) for n in norms)), rel=1e-6)
    assert found[None, "embeddings"]["change"] == pytest.approx(norm(delta["model.embed_tokens.weight"]), rel=1e-6)
    assert (None, "head") not in found, "tied"


def test_nothing_moved_is_zero():
    assert all(row["change"] == 0 and row["norm"] > 0 for row in weight_change(*open_pair(POCKET, POCKET)))


def test_an_adapter_counts_as_folded_in(tmp_path):
    torch.manual_seed(0)
    tuned = get_peft_model(AutoModelForCausalLM.from_pretrained(POCKET, dtype=torch.float32),
                           LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "up_proj"]))  # fmt: skip
    for name, weight in tuned.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(std=0.1)
    tuned.save_pretrained(tmp_path / "adapter")
    tuned.merge_and_unload().save_pretrained(tmp_path / "folded")
    adapter, folded = (by_place(weight_change(*open_pair(POCKET, tmp_path / name))) for name in ("adapter", "folded"))
    assert adapter.keys() == folded.keys()
    for place, row in adapter.items():
        assert row["change"] == pytest.approx(folded[place]["change"], rel=1e-4), place
    assert adapter[0, "up_proj"]["change"] > 0 == adapter[0, "k_proj"]["change"]


def test_models_that_do_not_fit_are_refused(tmp_path):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(POCKET)
    model.resize_token_embeddings(2000)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="was the vocabulary resized"):
        open_pair(POCKET, tmp_path)


def changed_copy(path, change):
    """The pocket model with other tensors, and a mask of booleans as old checkpoints have them."""
    shutil.copytree(POCKET, path)
    tensors = load_file(POCKET / "model.safetensors")
    mask = {"model.layers.0.attn.bias": torch.ones(1, 1, 4, 4, dtype=torch.bool)}
    save_file({name: change(tensor) for name, tensor in tensors.items()} | mask, path / "model.safetensors")
    return path


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_quantised_weights_are_refused_on_either_side(tmp_path, dtype):
    whole = changed_copy(tmp_path / "whole", lambda tensor: tensor)
    small = changed_copy(tmp_path / "small", lambda tensor: tensor.to(dtype))
    for sides in ((whole, small), (small, whole), (small, small)):
        with pytest.raises(ValueError, match=r"small/model.safetensors: .* not quantised"):
            weight_change(*open_pair(*sides))
    assert all(row["change"] == 0 for row in weight_change(*open_pair(whole, whole))), "the mask is no weight"


def test_weights_that_are_no_numbers_are_refused_with_their_side(tmp_path):
    whole = changed_copy(tmp_path / "whole", lambda tensor: tensor)
    broken = changed_copy(tmp_path / "broken", lambda tensor: tensor * math.nan)
    for sides in ((whole, broken), (broken, whole)):
        with pytest.raises(ValueError, match=r"holds NaN or infinity in .*/broken; "):
            weight_change(*open_pair(*sides))
