"""Intervals and tests for accuracies (fractions)."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb, sqrt

import numpy as np
from scipy.stats import binomtest, norm
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint


def wilson_interval(num_correct: int, num_questions: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of an accuracy.

    Raises:
        ValueError: no questions.
    """
    if num_questions < 1:
        raise ValueError("an accuracy needs at least one question")
    low, high = proportion_confint(num_correct, num_questions, 1 - level, method="wilson")
    return float(low), float(high)


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Unbiased pass@k of one question: 1 - C(M - c, k) / C(M, k)  (Chen et al. 2021, arXiv 2107.03374).

    Raises:
        ValueError: k outside [1, M].
    """
    if not 1 <= k <= num_samples:
        raise ValueError(f"k must be in [1, {num_samples}], the number of samples; got {k}")
    return 1 - comb(num_samples - num_correct, k) / comb(num_samples, k)


@dataclass(frozen=True)
class PairedDifference:
    """How much more often the second of two checkpoints is right on the same questions."""

    value: float
    ci_low: float
    ci_high: float
    p_value: float
    num_questions: int


def paired_difference(first: Sequence[bool], second: Sequence[bool], level: float = 0.95) -> PairedDifference:
    """Accuracy of `second` minus `first`, question by question.

    Interval: Bonett and Price (2012), an adjusted Wald interval for paired proportions. Test: exact McNemar.

    Raises:
        ValueError: not the same number of questions, or none.
    """
    a, b = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    if len(a) != len(b) or len(a) == 0:
        raise ValueError(f"a paired comparison needs the same questions on both sides, got {len(a)} and {len(b)}")
    n, gained, lost = len(a), int((~a & b).sum()), int((a & ~b).sum())
    up, down = (gained + 1) / (n + 2), (lost + 1) / (n + 2)
    half = norm.ppf(0.5 + level / 2) * sqrt((up + down - (up - down) ** 2) / (n + 2))
    p_value = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    return PairedDifference((gained - lost) / n, up - down - half, up - down + half, float(p_value), n)


def smallest_detectable_difference(num_questions: int, level: float = 0.95) -> float | None:
    """The least difference of two accuracies that exact McNemar can call significant on this many questions.

    It takes the best case, in which all questions that changed did so in one direction: g of them have p = 2 * 0.5^g.
    None where there are too few questions for any difference to be.
    """
    changed = 1
    while 2 * 0.5**changed > 1 - level:
        changed += 1
    return changed / num_questions if changed <= num_questions else None


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm-corrected p-values, in the order given."""
    return [float(p) for p in multipletests(p_values, method="holm")[1]] if len(p_values) else []


def gap(gains: Sequence[tuple[bool, float, float, int]], level: float = 0.95) -> tuple[float, float, float] | None:
    """ID gain minus mean OOD gain over the base, with its normal interval; None where a side is missing.

    gains: a row per task, (is ID, mean paired difference, variance of one question's, number of questions).
    """
    sides = [[row for row in gains if row[0] == is_id] for is_id in (True, False)]
    if not all(sides) or any(row[3] < 2 for row in gains):
        return None
    means = [sum(row[1] for row in side) / len(side) for side in sides]
    variance = sum(sum(row[2] / row[3] for row in side) / len(side) ** 2 for side in sides)
    value, half = means[0] - means[1], norm.ppf(0.5 + level / 2) * sqrt(variance)
    return value, value - half, value + half
