"""Go / no-go after iteration 1 (paper, appendix D): is the fine-tuned checkpoint below the base in domain?"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from workbench.core.statistics import paired_difference
from workbench.events import Emit, read_lines
from workbench.jobs import EvaluateJob


def go_no_go(job: EvaluateJob, task: str, rows: Sequence[dict[str, Any]], emit: Emit) -> dict[str, Any] | None:
    """SFT 1 against the base on the same ID questions; an alert where its interval lies below zero.

    rows: this phase's answers. None where there is no baseline to hold SFT 1 against.
    """
    made = [checkpoint.checkpoint_id for checkpoint in job.checkpoints if checkpoint.kind == "sft"]
    if job.baseline is None or not made:
        return None
    base = _right(read_lines(Path(job.baseline.outcomes))[0], job.baseline.checkpoint_id, task)
    sft = _right(rows, made[0], task)
    both = [question for question in sft if question in base]
    if not both:
        return None
    before, after = [base[q] for q in both], [sft[q] for q in both]
    found = paired_difference(before, after)
    verdict = {
        "task": task,
        "base": sum(before) / len(both),
        "sft": sum(after) / len(both),
        "is_worse": bool(found.ci_high < 0),
        **asdict(found),
    }
    verdict["text"] = in_words(verdict)
    if verdict["is_worse"]:
        emit("alert", text=f"{verdict['text']} This model may not be able to improve itself (paper, appendix D).")
    return verdict


def in_words(verdict: dict[str, Any]) -> str:
    """The comparison as a sentence."""
    base, sft, by, low, high = (100 * verdict[key] for key in ("base", "sft", "value", "ci_low", "ci_high"))
    return (
        f"SFT 1 answers {sft:.1f} % of {verdict['task']} right, the base {base:.1f} %: {by:+.1f} points "
        f"(95 %: {low:+.1f} to {high:+.1f}, n = {verdict['num_questions']} questions, paired)."
    )


def _right(rows: Sequence[dict[str, Any]], checkpoint_id: str, task: str) -> dict[str, bool]:
    """Whether each question was answered right, greedily."""
    return {
        row["question_id"]: row["is_correct"]
        for row in rows
        if (row["checkpoint_id"], row["task"], row["sample"]) == (checkpoint_id, task, 0)
    }
