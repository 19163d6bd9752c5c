"""MMLU, its 18 STEM subjects (Hendrycks et al. 2021, arXiv 2009.03300).

{"question": "What is 2+2?", "type": "abstract_algebra", "choices": ["3", "4", "5", "6"], "answer": 1}
"""

from collections.abc import Mapping
from typing import Any

from workbench.tasks.base import Row, Task, with_options


def read_row(row: Mapping[str, Any]) -> Row:
    """Question with its choices, and the letter of the 0-based answer."""
    choices, answer = row["choices"], int(row["answer"])
    if not 0 <= answer < len(choices):
        raise ValueError(f"answer {answer} is no index into {len(choices)} choices")
    marks = "ABCDEFGHIJ"[: len(choices)]
    return Row(with_options(row["question"], dict(zip(marks, choices, strict=True))), marks[answer])


TASK = Task("mmlu_stem", "choice", read_row, splits={"test": "test"})
