"""Statistics against hand-made and published values."""

from itertools import combinations

import numpy as np
import pytest

from workbench.core.statistics import (
    holm,
    mean_gain,
    paired_difference,
    pass_at_k,
    smallest_detectable_difference,
    wilson_interval,
)


def test_wilson_is_the_published_value():
    # Newcombe (1998), table I: 81 of 263, Wilson without continuity correction.
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson_interval(0, 20)[0] == pytest.approx(0, abs=1e-12)
    with pytest.raises(ValueError, match="at least one question"):
        wilson_interval(0, 0)


@pytest.mark.parametrize(("samples", "correct"), [(5, 0), (5, 2), (5, 5), (7, 3)])
def test_pass_at_k_is_the_share_of_subsets_with_a_hit(samples, correct):
    hits = [1] * correct + [0] * (samples - correct)
    for k in range(1, samples + 1):
        subsets = [max(subset) for subset in combinations(hits, k)]
        assert pass_at_k(samples, correct, k) == pytest.approx(np.mean(subsets))
    with pytest.raises(ValueError, match=r"k must be in \[1, "):
        pass_at_k(samples, correct, samples + 1)


def test_paired_difference():
    first = np.array([1] * 60 + [0] * 40, dtype=bool)
    second = np.array([1] * 50 + [0] * 10 + [1] * 30 + [0] * 10, dtype=bool)
    found = paired_difference(first, second)
    assert found.value == pytest.approx(0.2)
    assert 0 < found.ci_low < 0.2 < found.ci_high
    assert found.p_value == pytest.approx(0.002221, abs=1e-5)  # two-sided binomial, 10 of 40
    assert paired_difference(first, first).p_value == 1
    with pytest.raises(ValueError, match="same questions"):
        paired_difference(first, second[:-1])


def test_the_smallest_detectable_difference_is_where_mcnemar_turns():
    def p_value(gained):
        return paired_difference([False] * 32, [True] * gained + [False] * (32 - gained)).p_value

    least = smallest_detectable_difference(32)  # 4 more of SAT-Math's 32 never suffice
    assert least == 6 / 32
    assert p_value(6) <= 0.05 < p_value(5)
    assert smallest_detectable_difference(5) is None


def test_the_mean_gain_over_tasks():
    rng = np.random.default_rng(1)
    first, second = rng.random(200) < 0.4, rng.random(200) < 0.6
    one = paired_difference(first, second)
    gained, lost = int((~first & second).sum()), int((first & ~second).sum())
    assert mean_gain([(gained, lost, 200)]) == (one.value, one.ci_low, one.ci_high)
    value, low, high = mean_gain([(30, 0, 100), (0, 0, 900)])  # tasks weigh alike, whatever their size
    assert value == pytest.approx(0.15) and low < 0.15 < high
    hits = 0
    for _ in range(400):  # true gains 0.2 and -0.1
        tasks = [rng.multinomial(n, [up, down, 1 - up - down]) for n, up, down in ((60, 0.3, 0.1), (150, 0.1, 0.2))]
        _, low, high = mean_gain([(int(t[0]), int(t[1]), int(t.sum())) for t in tasks])
        hits += low <= 0.05 <= high
    assert 0.92 <= hits / 400 <= 0.98
    with pytest.raises(ValueError, match="at least one task"):
        mean_gain([])


def test_paired_interval_covers():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        base = rng.random(80) < 0.5
        other = np.where(rng.random(80) < 0.3, rng.random(80) < 0.7, base)
        found = paired_difference(base, other)
        hits += found.ci_low <= 0.3 * (0.7 - 0.5) <= found.ci_high
    assert hits / 400 > 0.92


def test_holm():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []
