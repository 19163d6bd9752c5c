"""ASDiv, diverse school problems (Miao et al. 2020, arXiv 2106.15772).

    {"body": "There are 7 red and 2 green apples.", "question": "How many in all?", "answer": "9 (apples)"}

A unit in brackets behind the answer is no part of it. Some answers are names, times or ratios.
"""

import re
from collections.abc import Mapping
from typing import Any

from workbench.tasks.base import Row, Task

UNIT = re.compile(r"(?<=\S)\s+\([^()]*\)\s*$")


def read_row(row: Mapping[str, Any]) -> Row:
    """Body and question as one text; the answer without its unit."""
    reference = UNIT.sub("", row["answer"].strip())
    if not reference:
        raise ValueError("no answer")
    return Row(f"{row['body'].strip()} {row['question'].strip()}".strip(), reference)


TASK = Task("asdiv", "math", read_row, splits={"test": "test"})
