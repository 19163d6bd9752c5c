"""MATH, competition problems (Hendrycks et al. 2021, arXiv 2103.03874); math500 is a subset of its test split.

    {"problem": "What is $1+1$?", "level": "Level 1", "type": "Algebra", "solution": "It is $\\\\boxed{2}$."}

The answer is the content of the last `\\boxed{...}`; a few rows write `\\boxed 2`. The split is the authors', 7,500
train and 5,000 test problems, as in the paper; other hub sets train on all but 500.
"""

from collections.abc import Mapping
from typing import Any

from workbench.core.answers import last_boxed
from workbench.tasks.base import Row, Task


def read_row(row: Mapping[str, Any]) -> Row:
    """Problem, content of the last box, solution."""
    reference = last_boxed(row["solution"])
    if not reference:
        raise ValueError("no \\boxed answer in the solution")
    return Row(row["problem"].strip(), reference, row["solution"].strip())


TASK = Task(
    "math", "math", read_row, hub="DigitalLearningGmbH/MATH-lighteval:default",
    order="by subject, algebra first (math500 is 500 of its test rows, mixed)",
)  # fmt: skip
MATH500 = Task("math500", "math", read_row, hub="HuggingFaceH4/MATH-500", splits={"test": "test"})
