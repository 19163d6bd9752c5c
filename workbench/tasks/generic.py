"""Rows of an unknown JSON Lines file: a question, an answer, perhaps a worked solution.

{"question": "What is 2+2?", "answer": "4", "solution": "2+2 = 4. The answer is 4."}
"""

from collections.abc import Iterable, Mapping
from typing import Any

from workbench.core.answers import as_number
from workbench.tasks.base import AnswerFormat, Row

QUESTION = ("question", "problem", "input", "prompt")
ANSWER = ("answer", "reference", "target")
SOLUTION = ("solution", "rationale")


def read_row(row: Mapping[str, Any]) -> Row:
    """The first field of each kind that is there."""
    return Row(_field(row, QUESTION), _field(row, ANSWER), _field(row, SOLUTION, needed=False) or None)


def _field(row: Mapping[str, Any], names: Iterable[str], needed: bool = True) -> str:
    found = next((str(row[name]).strip() for name in names if row.get(name) is not None), "")
    if needed and not found:
        raise ValueError(f"no {' or '.join(names)}")
    return found


def guess_format(references: Iterable[str]) -> AnswerFormat:
    """number where all references are numbers, choice where all are single letters, else math."""
    references = list(references)
    if all(as_number(reference) is not None for reference in references):
        return "number"
    if all(len(reference) == 1 and reference.isalpha() for reference in references):
        return "choice"
    return "math"
