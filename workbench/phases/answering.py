"""Greedy answers to a task's questions: asked, graded, and scored with n and interval."""

from collections.abc import Mapping, Sequence
from typing import Any

from workbench.core.answers import grade
from workbench.core.prompts import STOP_STRINGS
from workbench.core.statistics import wilson_interval
from workbench.engines import Engine, Request
from workbench.tasks import LoadedTask, Question


def answer(
    engine: Engine, batch: Sequence[tuple[Question, str]], task: LoadedTask, max_new_tokens: int
) -> list[dict[str, Any]]:
    """One row per (question, prompt) of a batch: text, answer found, whether it is right."""
    made = engine.generate([Request(prompt) for _, prompt in batch], max_new_tokens=max_new_tokens, stop=STOP_STRINGS)
    rows = []
    for (question, _), generation in zip(batch, made, strict=True):
        result = grade(generation.text, question.reference, task.answer_format)
        rows.append(
            {
                "task": task.name,
                "question_id": question.question_id,
                "sample": 0,
                "question": question.text,
                "reference": question.reference,
                "text": generation.text,
                "answer": result.answer,
                "is_correct": result.is_correct,
                "num_tokens": generation.num_tokens,
            }
        )
    return rows


def score_of(task: str, domain: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Accuracy on a task with its n and Wilson interval."""
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
