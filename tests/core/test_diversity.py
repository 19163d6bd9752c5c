"""Diversity of solutions, and the alerts of the collapse monitor."""

import pytest

from workbench.config import MonitorConfig
from workbench.core.diversity import alerts, distinct_share, diversity, entropy, self_bleu

LIMITS = MonitorConfig().model_dump()


def rows(*groups):
    return [
        {"question_id": str(q), "text": text, "answer": text.split()[-1], "num_tokens": len(text.split())}
        for q, group in enumerate(groups)
        for text in group
    ]


def test_measures_by_hand():
    found = diversity(rows(["a b 1", "a b 1"], ["a b 1", "c d 2"]))
    assert found["distinct_solutions"] == pytest.approx((1 / 2 + 1) / 2)
    assert found["distinct_1"] == pytest.approx((3 / 6 + 6 / 6) / 2)
    assert found["distinct_2"] == pytest.approx((2 / 4 + 4 / 4) / 2)
    assert found["answer_entropy"] == pytest.approx((0 + 1) / 2)
    assert found["solution_tokens"] == 3
    assert entropy(["4", None, "4", None]) == 1
    assert distinct_share(["word"], 2) is None


def test_self_bleu_of_the_same_and_of_others():
    assert self_bleu(["one two three four five"] * 3) == pytest.approx(100)
    assert self_bleu(["one two three four five", "six seven eight nine ten"]) < 5


def test_one_solution_per_question_has_a_length_only():
    assert set(diversity(rows(["a b"], ["c d"]))) == {"solution_tokens"}


def test_collapse_raises_alerts_and_health_none():
    healthy = diversity(rows(*[[f"first way {q} 1", f"quite another path {q} 2"] for q in range(9)]))
    collapsed = diversity(rows(*[[f"the only way there is {q}"] * 2 for q in range(9)]))
    assert alerts(healthy, healthy, LIMITS) == []
    found = alerts(healthy, collapsed, LIMITS)
    assert len(found) == 3
    assert "per question: 0.50, 50% of 1.00 in the first iteration (alert below 70% of it)" in found[0]
    assert "self-BLEU 100.0" in found[2]
    longer = healthy | {"solution_tokens": 3 * healthy["solution_tokens"]}
    assert "in the first iteration (alert over 2 times)" in alerts(healthy, longer, LIMITS)[0]
