"""SVAMP, one-step problems with distracting numbers (Patel et al. 2021, arXiv 2103.07191).

The hub's copy divides the 1,000 into 700 train and 300 test questions; the editions linked in README test on all.

    {"Body": "Ida has 8 pens and 3 cups", "Question": "How many pens has she?", "Answer": 8.0, "ID": "chal-1"}
"""

from collections.abc import Mapping
from typing import Any

from workbench.tasks.base import Row, Task, plain_number


def read_row(row: Mapping[str, Any]) -> Row:
    """Body and question as one text; bodies often lack their full stop."""
    body = row["Body"].strip()
    if body and body[-1] not in ".!?,":
        body += "."
    return Row(f"{body} {row['Question'].strip()}".strip(), plain_number(row["Answer"]))


TASK = Task("svamp", "number", read_row, hub="ChilleD/SVAMP", splits={"train": "train", "test": "test"})
