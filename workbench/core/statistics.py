"""Intervals and tests for accuracies (fractions)."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb, sqrt
from statistics import NormalDist

import numpy as np
from scipy.stats import binomtest


def wilson_interval(num_correct: int, num_questions: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of an accuracy.

    Raises:
        ValueError: no questions.
    """
    if num_questions < 1:
        raise ValueError("an accuracy needs at least one question")
    interval = binomtest(num_correct, num_questions).proportion_ci(level, method="wilson")
    return float(interval.low), float(interval.high)


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Unbiased pass@k of one question: 1 - C(M - c, k) / C(M, k)  (Chen et al. 2021, arXiv 2107.03374).

    Raises:
        ValueError: k outside [1, M].
    """
    if not 1 <= k <= num_samples:
        raise ValueError(f"k must be in [1, {num_samples}], the number of samples; got {k}")
    return 1 - comb(num_samples - num_correct, k) / comb(num_samples, k)


def bootstrap_mean(values: Sequence[float], level: float = 0.95, replicates: int = 2000) -> tuple[float, float, float]:
    """(mean, low, high) of one value per question; percentile bootstrap over questions, with fixed draws.

    Raises:
        ValueError: no values.
    """
    if not len(values):
        raise ValueError("a mean needs at least one value")
    array = np.asarray(values, dtype=float)
    draws = np.random.default_rng(0).multinomial(len(array), np.full(len(array), 1 / len(array)), replicates)
    low, high = np.quantile(draws @ array / len(array), [(1 - level) / 2, (1 + level) / 2])
    return float(array.mean()), float(low), float(high)


def crossed_bootstrap(
    tasks: Sequence[Sequence[Sequence[bool]]], level: float = 0.95, replicates: int = 2000
) -> tuple[float, float, float]:
    """(mean, low, high) of accuracy over tasks, each (seeds, questions); seeds and questions are both drawn anew.

    Every draw takes seeds for all tasks alike and questions for each task (Owen 2007, arXiv 0711.1984: for two
    crossed factors it errs on the wide side). Few seeds that lie far apart are the exception: with 500 questions and
    seeds 5 points apart (SD) it covered 87 % with two, 90 % with three, 95 % with five of them in simulations. One
    seed is no sample: then questions alone are drawn.

    Raises:
        ValueError: no task, or tasks with different numbers of seeds.
    """
    arrays = [np.asarray(task, dtype=float) for task in tasks]
    if not arrays or len({len(array) for array in arrays}) > 1:
        raise ValueError("every task needs the same seeds, at least one")
    random, seeds = np.random.default_rng(0), len(arrays[0])
    weights = (
        random.multinomial(seeds, np.full(seeds, 1 / seeds), replicates) if seeds > 1 else np.ones((replicates, 1))
    )
    total = np.zeros(replicates)
    for array in arrays:
        n = array.shape[1]
        draws = random.multinomial(n, np.full(n, 1 / n), replicates)  # (replicates, questions)
        total += np.einsum("rs,rs->r", weights / seeds, draws @ array.T / n)
    low, high = np.quantile(total / len(arrays), [(1 - level) / 2, (1 + level) / 2])
    return float(np.mean([array.mean() for array in arrays])), float(low), float(high)


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
    value, low, high = mean_gain([(gained, lost, n)], level)
    p_value = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    return PairedDifference(value, low, high, float(p_value), n)


def mean_gain(tasks: Sequence[tuple[int, int, int]], level: float = 0.95) -> tuple[float, float, float]:
    """(mean, low, high) of the accuracy gained over tasks: a row per task, (gained, lost, number of questions).

    Interval: of one task Bonett and Price's; of several, whose questions differ, the same with variances added.

    Raises:
        ValueError: no tasks, or one without questions.
    """
    if not tasks or any(n < 1 for _, _, n in tasks):
        raise ValueError("a gain needs at least one task, and one question of each")
    sides = [((gained + 1) / (n + 2), (lost + 1) / (n + 2), n + 2) for gained, lost, n in tasks]
    middle = sum(up - down for up, down, _ in sides) / len(sides)
    variance = sum((up + down - (up - down) ** 2) / m for up, down, m in sides) / len(sides) ** 2
    half = NormalDist().inv_cdf(0.5 + level / 2) * sqrt(variance)
    value = sum((gained - lost) / n for gained, lost, n in tasks) / len(tasks)
    return value, max(-1.0, middle - half), min(1.0, middle + half)


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
    from statsmodels.stats.multitest import multipletests  # slow to import, and most who come here need none

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
    value, half = means[0] - means[1], NormalDist().inv_cdf(0.5 + level / 2) * sqrt(variance)
    return value, value - half, value + half
