"""Importance against dense float64 gradients and against weights really removed, on a two-layer model."""

import math
import shutil

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import (
    MixtralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3MoeForCausalLM,
)

from workbench.analysis.backward import mapped
from workbench.analysis.importance import measure, open_model
from workbench.analysis.index import Importance
from workbench.config import AnalyzeConfig
from workbench.core.layers import MODULES
from workbench.core.superficiality import critical_layers, superficiality, verdict
from workbench.examples import Example


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = Qwen2Config(vocab_size=40, hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2,
                         num_key_value_heads=1, initializer_range=0.5)  # fmt: skip
    return Qwen2ForCausalLM(config).double()


def texts(count, seed=0, longest=14):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(6, longest, count)
    return [Example(rng.integers(0, 40, length).tolist(), int(rng.integers(1, 5))) for length in lengths]


def loss(model, example):
    """Mean over the response's tokens, computed without padding, hooks or layers."""
    ids = torch.tensor([example.ids])
    return cross_entropy(model(ids).logits[0, example.first - 1 : -1], ids[0, example.first :])


def gradients(model, examples):
    """Every example's own gradient of every linear weight, in float64."""
    weights = {n: p for n, p in model.named_parameters() if n.split(".")[-2] in MODULES and n.endswith("weight")}
    for weight in weights.values():
        weight.requires_grad_(True)
    found = [torch.autograd.grad(loss(model, example), list(weights.values())) for example in examples]
    model.requires_grad_(False)
    return {name: (weight, torch.stack([g[at] for g in found])) for at, (name, weight) in enumerate(weights.items())}


def removed(gradient, weight, order):
    """Eq. 2: |g W - F W^2 / 2| from single examples' gradients; the second term only with order `second`."""
    change = gradient.mean(0) * weight
    if order == "second":
        change = change - gradient.square().mean(0) * weight.square() / 2
    return change.abs().sum().item()


@pytest.mark.parametrize("order", ["first", "second"])
@pytest.mark.parametrize("how", ["accumulated", "per_batch"])
def test_every_variant_equals_a_dense_computation(model, tmp_path, order, how):
    examples = sorted(texts(11), key=lambda example: len(example.ids))
    settings = AnalyzeConfig(gradients=how, order=order, batch_size=4)
    found, about = measure(model, tmp_path, examples, settings, seed=0, scratch=tmp_path)
    assert about["loss"] == pytest.approx(np.mean([loss(model, e).item() for e in examples]))
    for name, (weight, each) in gradients(model, examples).items():
        groups = [each] if how == "accumulated" else list(each.split(4))
        expected = np.mean([removed(group, weight, order) for group in groups])
        layer, module = int(name.split(".")[2]), name.split(".")[-2]
        assert found.values[layer, found.modules.index(module)] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("order", ["first", "second"])
def test_a_model_that_runs_batch_and_tokens_together(tmp_path, order):
    torch.manual_seed(0)
    config = OPTConfig(vocab_size=40, hidden_size=8, ffn_dim=12, num_hidden_layers=2, num_attention_heads=2,
                       max_position_embeddings=20, word_embed_proj_dim=8, init_std=0.5, pad_token_id=None)  # fmt: skip
    opt, examples = OPTForCausalLM(config).double().eval(), texts(7)
    found, _ = measure(opt, tmp_path, examples, AnalyzeConfig(order=order, batch_size=3), seed=0, scratch=tmp_path)
    opt.requires_grad_(True)
    weights = dict(opt.model.decoder.layers.named_parameters())
    weights = {name: weight for name, weight in weights.items() if weight.dim() == 2}
    each = [torch.autograd.grad(loss(opt, example), list(weights.values())) for example in examples]
    for layer in range(2):
        expected = sum(
            removed(torch.stack([g[at] for g in each]), weight, order)
            for at, (name, weight) in enumerate(weights.items())
            if name.startswith(f"{layer}.")
        )
        assert found.values[layer, 0] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("kind", [MixtralForCausalLM, Qwen3MoeForCausalLM])
def test_a_model_whose_experts_would_be_left_out_is_refused(tmp_path, kind):
    config = kind.config_class(vocab_size=40, hidden_size=8, intermediate_size=12, num_hidden_layers=2, head_dim=4,
                               num_attention_heads=2, num_key_value_heads=1, num_experts=4, num_local_experts=4,
                               moe_intermediate_size=4)  # fmt: skip
    with pytest.raises(ValueError, match=r"has mlp\.\S+ in its blocks, which is no linear layer's weight"):
        measure(kind(config), tmp_path, texts(3), AnalyzeConfig(), seed=0, scratch=tmp_path)


def test_states_that_the_disk_cannot_hold_are_refused_before_they_are_written(tmp_path):
    with pytest.raises(ValueError, match=r"keeps 2.1e\+06 GiB of states .* lower analyze.num_examples"):
        mapped(tmp_path, 2**49, torch.float32)
    mapped(tmp_path, 2**20, torch.float32)[:] = 1
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_that_is_no_numbers_is_refused(model, tmp_path):
    broken = Qwen2ForCausalLM(model.config)
    broken.model.layers[1].mlp.up_proj.weight.data.fill_(math.nan)
    with pytest.raises(ValueError, match="on these texts is nan"):
        measure(broken, tmp_path, texts(3), AnalyzeConfig(), seed=0, scratch=tmp_path)


def test_it_is_what_the_loss_loses_when_a_weight_goes(model, tmp_path):
    examples, step = texts(3), 1e-3
    found, _ = measure(model, tmp_path, examples, AnalyzeConfig(), seed=0, scratch=tmp_path)
    weight = model.model.layers[1].self_attn.k_proj.weight

    def total():
        with torch.no_grad():
            return sum(loss(model, example).item() for example in examples) / len(examples)

    lost = 0.0
    for row in range(weight.shape[0]):
        for column in range(weight.shape[1]):
            kept = weight[row, column].item()
            around = []
            for factor in (1 - step, 1 + step):
                weight.data[row, column] = kept * factor
                around.append(total())
            weight.data[row, column] = kept
            lost += abs(around[0] - around[1]) / (2 * step)
    assert found.values[1, found.modules.index("k_proj")] == pytest.approx(lost, rel=1e-3)


def test_batches_make_no_difference_and_modules_add_up(model, tmp_path):
    examples = texts(9)
    one, _ = measure(model, tmp_path, examples, AnalyzeConfig(batch_size=1), seed=0, scratch=tmp_path)
    all_, _ = measure(model, tmp_path, examples, AnalyzeConfig(batch_size=9), seed=0, scratch=tmp_path)
    assert np.allclose(one.values, all_.values, rtol=1e-4) and np.allclose(one.draws, all_.draws, rtol=1e-3)
    assert np.allclose(one.values[:, 0], one.values[:, 1:].sum(1))
    shares = [row["share"] for row in one.rows() if row["module"] == "all"]
    assert sum(shares) == pytest.approx(1)


def test_sums_in_bf16_lose_no_digits(model, tmp_path):
    """A thousand times the same text has the gradient of that text; added up in bf16 it would stop growing."""
    low = Qwen2ForCausalLM(model.config).to(torch.bfloat16)
    low.load_state_dict(model.state_dict())
    example, settings = texts(1, longest=9)[0], AnalyzeConfig(batch_size=1)
    few, _ = measure(low, tmp_path, [example] * 2, settings, seed=0, scratch=tmp_path)
    many, about = measure(low, tmp_path, [example] * 1000, settings, seed=0, scratch=tmp_path)
    assert about["dtype"] == "bfloat16"
    assert np.allclose(few.values, many.values, rtol=1e-5)


def test_a_model_that_accelerate_puts_aside_is_the_same(model, tmp_path):
    model.float().save_pretrained(tmp_path / "model")
    whole = open_model(tmp_path / "model", "float32")
    parts = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk", "model.norm": "cpu",
             "model.rotary_emb": "cpu", "lm_head": "cpu"}  # fmt: skip
    spread = open_model(tmp_path / "model", "float32", device_map=parts)
    assert spread.model.layers[1].mlp.up_proj.weight.is_meta
    settings = AnalyzeConfig(batch_size=4)
    found = [
        measure(m, tmp_path / "model", texts(6), settings, seed=0, scratch=tmp_path)[0].values for m in (whole, spread)
    ]
    assert np.allclose(*found, rtol=1e-5)
    model.double()


def test_the_band_narrows_with_more_examples(model, tmp_path):
    def width(count):
        found, _ = measure(model, tmp_path, texts(count), AnalyzeConfig(), seed=0, scratch=tmp_path)
        rows = [row for row in found.rows() if row["module"] == "all"]
        assert all(row["ci_low"] <= row["importance"] <= row["ci_high"] for row in rows)
        return np.mean([(row["ci_high"] - row["ci_low"]) / row["importance"] for row in rows])

    assert width(400) < 0.6 * width(25)


def test_it_is_kept_in_a_file(model, tmp_path):
    found, _ = measure(model, tmp_path, texts(3), AnalyzeConfig(), seed=0, scratch=tmp_path)
    found.save(tmp_path / "kept.npz")
    again = Importance.load(tmp_path / "kept.npz")
    assert again.modules == found.modules and np.array_equal(again.values, found.values)
    shutil.rmtree(tmp_path)


def test_a_model_with_changed_logits_is_refused(model, tmp_path):
    class Scaled(Qwen2ForCausalLM):
        def forward(self, *args, **kwargs):
            out = super().forward(*args, **kwargs)
            out.logits = 3 * out.logits
            return out

    with pytest.raises(ValueError, match="Scaled changes its logits"):
        measure(Scaled(model.config), tmp_path, texts(3), AnalyzeConfig(), seed=0, scratch=tmp_path)


def test_the_index_is_the_rank_correlation_and_its_verdict_waits_for_evidence():
    importance, rng = [9.0, 7.0, 4.0, 3.0, 2.0, 1.0], np.random.default_rng(0)
    draws = np.array(importance) + rng.normal(0, 0.1, (400, 6))
    against = superficiality(importance, draws, [1, 2, 3, 4, 5, 6])
    along = superficiality(importance, draws, [6, 5, 4, 3, 2, 1])
    assert (against.value, along.value) == (-1, 1) and against.is_sure and along.is_sure
    assert "Superficial:" in verdict(importance, [1, 2, 3, 4, 5, 6], against)
    assert "Not superficial:" in verdict(importance, [6, 5, 4, 3, 2, 1], along)
    assert "layers 0, 1 (mostly early, 62 %)" in verdict(importance, [6, 5, 4, 3, 2, 1], along)
    noisy = superficiality(importance, np.array(importance) + rng.normal(0, 9, (400, 6)), [1, 2, 6, 4, 5, 3])
    assert noisy.ci_low < 0 < noisy.ci_high and "cannot be told" in verdict(importance, [1, 2, 6, 4, 5, 3], noisy)
    four = superficiality([4, 3, 2, 1], np.tile([4.0, 3, 2, 1], (50, 1)), [1, 2, 3, 4])
    assert four.ci_low is None and "no correlation can be told" in verdict([4, 3, 2, 1], [1, 2, 3, 4], four)
    still = superficiality(importance, draws, [0.0] * 6)
    assert still.value is None and "Nothing moved" in verdict(importance, [0.0] * 6, still)
    assert critical_layers([1, 1, 8, 1, 1]) == [2]
    with pytest.raises(ValueError, match="one model"):
        superficiality(importance, draws, [1, 2, 3])
