"""SAT-Math, 32 multiple-choice questions (from AGIEval, Zhong et al. 2023, arXiv 2304.06364).

    {"question": "What is $2+2$?", "options": "A) 3 B) 4 C) 5 D) 6", "Answer": "B"}

Options are one text with LaTeX in it and two ways of marking the letters, so it is passed on as it is.
"""

from collections.abc import Mapping
from typing import Any

from workbench.tasks.base import Row, Task


def read_row(row: Mapping[str, Any]) -> Row:
    """Question with its options, and the letter."""
    letter = row["Answer"].strip().upper()
    if letter not in ("A", "B", "C", "D"):
        raise ValueError(f"Answer is {row['Answer']!r}, not one of A to D")
    return Row(f"{row['question'].strip()} {row['options'].strip()}", letter)


TASK = Task("sat_math", "choice", read_row, splits={"test": "test"})
