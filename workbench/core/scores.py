"""What graded answers come to: accuracy and pass@k, each with its n and interval."""

from collections.abc import Mapping, Sequence
from typing import Any

from workbench.core.statistics import bootstrap_mean, pass_at_k, wilson_interval


def score_of(task: str, domain: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Greedy accuracy on a task with its n and Wilson interval."""
    n, right = len(rows), sum(row["is_correct"] for row in rows)
    low, high = wilson_interval(right, n)
    return {
        "task": task,
        "domain": domain,
        "num_questions": n,
        "num_correct": right,
        "accuracy": right / n,
        "ci_low": low,
        "ci_high": high,
    }


def pass_scores(task: str, domain: str, rows: Sequence[Mapping[str, Any]], num_samples: int) -> list[dict[str, Any]]:
    """pass@k of sampled answers for k = 1, 2, 4, ... and M, each with its bootstrap interval over questions."""
    right: dict[str, int] = {}
    for row in rows:
        right[row["question_id"]] = right.get(row["question_id"], 0) + row["is_correct"]
    found = []
    for k in sorted({2**power for power in range(num_samples.bit_length())} | {num_samples}):
        value, low, high = bootstrap_mean([pass_at_k(num_samples, count, k) for count in right.values()])
        about = {"task": task, "domain": domain, "k": k, "num_samples": num_samples, "num_questions": len(right)}
        found.append(about | {"pass_at_k": value, "ci_low": low, "ci_high": high})
    return found
