"""The merge's equations, held by invariants."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.core import kernel, recipe
from workbench.core.dare import dare, keep_mask, merge_tensor
from workbench.core.distances import from_base, from_sft
from workbench.core.recipe import Recipe, drop_threshold, mask_keys

TYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])
SHAPES = st.lists(st.integers(1, 40), min_size=0, max_size=3)


def three(shape, dtype, seed=0):
    rng = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=rng)
    start = base + 0.1 * torch.randn(shape, generator=rng)
    sft = start + 0.01 * torch.randn(shape, generator=rng)
    return [x.to(dtype) for x in (base, start, sft)]


def same_bits(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.numpy(force=True).tobytes() == b.numpy(force=True).tobytes()


@given(SHAPES, st.sampled_from([torch.float32, torch.float16]), st.floats(0, 0.99), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_alpha_one_returns_the_base_bit_for_bit(shape, dtype, drop_rate, seed):
    base, start, sft = three(shape, dtype)
    assert same_bits(merge_tensor(base, start, sft, Recipe(1.0, drop_rate, seed), "w"), base)


@given(SHAPES, st.sampled_from([torch.float32, torch.float16]), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_alpha_zero_without_drops_returns_sft_bit_for_bit(shape, dtype, seed):
    base, start, sft = three(shape, dtype)
    sft = torch.where(sft > 1, sft * 1e-6, sft)  # a change of scale must not cost digits either
    assert same_bits(merge_tensor(base, start, sft, Recipe(0.0, 0.0, seed), "w"), sft)


@given(SHAPES, TYPES, st.floats(0, 1), st.floats(0, 0.95), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_merge_is_the_formula(shape, dtype, alpha, drop_rate, seed):
    base, start, sft = three(shape, dtype)
    piece = slice(0, base.numel())
    mask = keep_mask(seed, "w", drop_rate, piece).view(base.shape).double()
    b, s, f = base.double(), start.double(), sft.double()
    exact = alpha * b + (1 - alpha) * (s + mask * (f - s) / (1 - drop_rate))
    merged = merge_tensor(base, start, sft, Recipe(alpha, drop_rate, seed), "w")
    eps = torch.finfo(dtype).eps
    assert torch.allclose(merged.double(), exact, rtol=eps, atol=1e-5 if dtype == torch.float32 else eps / 50)


@pytest.mark.parametrize("drop_rate", [0.05, 0.2, 0.5, 0.9, 0.99])
def test_kept_share_is_one_minus_p(drop_rate):
    n = 1_000_000
    for name in ("a", "b"):
        kept = keep_mask(7, name, drop_rate, slice(0, n)).float().mean().item()
        assert abs(kept - (1 - drop_rate)) < 4.5 * math.sqrt(drop_rate * (1 - drop_rate) / n)


def test_masks_of_neighbours_names_and_seeds_are_unrelated():
    n, piece = 400_000, slice(0, 400_000)
    first = keep_mask(1, "a", 0.5, piece).float() - 0.5
    others = [first.roll(k) for k in (1, 2, 64, 4096)]
    others += [keep_mask(1, "b", 0.5, piece).float() - 0.5, keep_mask(2, "a", 0.5, piece).float() - 0.5]
    for other in others:
        correlation = 4 * (first * other).mean().item()
        assert abs(correlation) < 4.5 / math.sqrt(n)


@given(st.integers(0, 2**22).map(lambda page: page * 4096), st.integers(1, 3000), st.integers(0, 3000))
@settings(max_examples=50, deadline=None)
def test_mask_depends_on_the_index_alone(at, length, inside):
    inside = min(inside, length - 1)
    whole = keep_mask(3, "w", 0.3, slice(at, at + length))
    assert torch.equal(whole[inside:], keep_mask(3, "w", 0.3, slice(at + inside, at + length)))


def test_merge_is_the_same_in_other_chunks(monkeypatch):
    base, start, sft = three((301, 997), torch.bfloat16)
    whole = merge_tensor(base, start, sft, Recipe(0.4, 0.3, 5), "w")
    monkeypatch.setattr(recipe, "CHUNK", 1000)
    assert torch.equal(whole, merge_tensor(base, start, sft, Recipe(0.4, 0.3, 5), "w"))


def test_rescale_is_exact_and_keeps_the_mean():
    delta = torch.linspace(-1, 1, 1000)
    draws = torch.stack([dare(delta, 0.75, seed, "w") for seed in range(400)])
    kept = draws != 0
    assert torch.equal(draws[kept], (delta * 4).expand_as(draws)[kept])
    error = draws.mean(0) - delta
    spread = delta.abs() * math.sqrt(3 / 400)  # sd of one draw is |delta| * sqrt(p / (1 - p))
    assert (error.abs() < 5 * spread + 1e-7).all()


def bits(tensor):
    """A tensor as the kernels take it."""
    flat = tensor.flatten()
    return (flat.view(torch.uint16) if flat.dtype == torch.bfloat16 else flat.float()).numpy()


@given(
    SHAPES, st.sampled_from([torch.float32, torch.bfloat16]), st.sampled_from([0, 0.3, 1]) | st.floats(0, 1),
    st.just(0.0) | st.floats(0, 0.95), st.integers(0, 2**32 - 1), st.sampled_from(["base", "start"]),
)  # fmt: skip
@settings(max_examples=80, deadline=None)
def test_the_compiled_kernel_is_the_same_bit_for_bit(shape, dtype, alpha, drop_rate, seed, towards):
    base, start, sft = three(shape, dtype)
    made = Recipe(alpha, drop_rate, seed, towards=towards)
    out = np.empty_like(bits(base))
    sums, counts = np.zeros(len(kernel.SUMS)), np.zeros(len(kernel.COUNTS), np.int64)
    kernel.merge(
        bits(base), bits(base if towards == "base" else start), bits(start), bits(sft), out, first=0,
        keys=mask_keys(seed, "w", 0), threshold=drop_threshold(drop_rate), trim=0.0, boost=made.boost,
        alpha=alpha, scale=1.0, sums=sums, counts=counts,
    )  # fmt: skip
    merged = merge_tensor(base, start, sft, made, "w")
    assert bits(merged).tobytes() == out.tobytes()
    found = dict(zip(kernel.SUMS + kernel.COUNTS, [*sums, *counts], strict=True))
    d, delta = (start.float() - base.float()).double(), (sft.float() - start.float()).double()
    assert found["d_delta"] == pytest.approx((d * delta).sum().item(), rel=1e-9, abs=1e-12)
    assert found["moved_moved"] == pytest.approx((merged.float() - base.float()).double().pow(2).sum().item(), rel=1e-9)
    keep = keep_mask(seed, "w", drop_rate, slice(0, base.numel())).view(base.shape)
    assert found["num_dropped"] == (~keep & (delta != 0)).sum().item()
    assert found["unlike_sft"] == (merged != sft).sum().item()


@pytest.mark.parametrize("towards", ["base", "start"])
@pytest.mark.parametrize(("alpha", "drop_rate"), [(0.3, 0.9), (0.0, 0.5), (0.8, 0.2)])
def test_distances_and_their_spread_are_met_on_average(alpha, drop_rate, towards):
    base, start, sft = (x.double() for x in three((4000,), torch.float32))
    moments = kernel.pair_moments(*(x.float().numpy() for x in (base, start, sft)))[None]
    merges = [merge_tensor(base, start, sft, Recipe(alpha, drop_rate, s, towards=towards), "w") for s in range(400)]
    for expected, other in ((from_base, base), (from_sft, sft)):
        mean, spread = expected(moments, alpha, drop_rate, towards)[:, 0]
        seen = torch.stack([(merged - other).norm() for merged in merges])
        assert seen.mean().item() == pytest.approx(mean, abs=5 * spread / 20 + 1e-6)
        assert seen.std().item() == pytest.approx(spread, rel=0.25, abs=1e-6)


def test_the_mean_over_seeds_is_the_linear_merge():
    base, start, sft = three((500,), torch.float32)
    draws = torch.stack([merge_tensor(base, start, sft, Recipe(0.4, 0.5, seed), "w") for seed in range(400)])
    linear = merge_tensor(base, start, sft, Recipe(0.4, 0.0, 0), "w")
    standard_error = 0.6 * (sft - start).abs() / 20  # sd of a draw: (1 - alpha) |delta| sqrt(p / (1 - p))
    assert ((draws.mean(0) - linear).abs() < 5 * standard_error + 1e-6).all()


@pytest.mark.parametrize(
    ("alpha", "drop_rate", "named"),
    [
        (-0.1, 0, "alpha"),
        (1.1, 0, "alpha"),
        (math.nan, 0, "alpha"),
        (0.5, 1, "drop_rate"),
        (0.5, math.nan, "drop_rate"),
    ],
)
def test_a_setting_out_of_range_is_named(alpha, drop_rate, named):
    with pytest.raises(ValueError, match=rf"{named} must be in \[0, 1"):
        Recipe(alpha, drop_rate, 0)


def test_alphas_by_layer_and_module():
    made = Recipe(0.5, 0, 0, layer_alphas=(0.2, 0.8), module_factors=(("down_proj", 2.0),))
    names = [
        "model.embed_tokens.weight",
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.1.mlp.down_proj.weight",
    ]
    assert [made.alpha_of(name) for name in names] == [0.5, 0.2, 1.0]
    with pytest.raises(ValueError, match="in layer 2, but alphas are given for 2 layers"):
        made.alpha_of("model.layers.2.input_layernorm.weight")
    with pytest.raises(ValueError, match="alpha of layer 1 must be in"):
        Recipe(0.5, 0, 0, layer_alphas=(0.2, 1.2))


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match="shapes differ"):
        merge_tensor(torch.ones(2), torch.ones(3), torch.ones(2), Recipe(0.5, 0, 0), "w")
