"""MathQA, multiple choice among five (Amini et al. 2019, arXiv 1905.13319).

    {"problem": "what is 3 + 4 ?", "options": "a ) 6 , b ) 7 , c ) 8 , d ) 9 , e ) 10", "correct": "b",
     "rationale": "3 + 4 = 7 . answer : b"}

A rationale names the letter in many ways or not at all, so a sentence with it is added.
Some rows double the mark ("a ) a ) 6"), some write a Python list, some options hold commas: split at the
letters, in order.
"""

import re
from collections.abc import Mapping
from typing import Any

from workbench.tasks.base import Row, Task, with_options

LISTED = re.compile(r"""^\[["']|["'],\s*["']|["']\]$""")
OPTIONS = re.compile(r"(?:^|,)\s*([a-e])\s*\)\s*(?:\1\s*\)\s*)?(.*?)(?=\s*,\s*[a-e]\s*\)|[\s,]*$)", re.DOTALL)


def read_row(row: Mapping[str, Any]) -> Row:
    """Problem with its options, the letter in capitals, and the rationale, which comes in quotation marks."""
    letter = row["correct"].strip().upper()
    options = {mark.upper(): text for mark, text in OPTIONS.findall(LISTED.sub(",", row["options"].strip()))}
    if letter not in ("A", "B", "C", "D", "E"):
        raise ValueError(f"correct is {row['correct']!r}, not one of a to e")
    rationale = (row.get("rationale") or "").strip('" ')
    solution = f"{rationale}\nThe answer is ({letter})." if rationale else None
    if letter not in options:  # an oddly written list is shown as it is
        return Row(f"{row['problem'].strip()} {row['options'].strip()}", letter, solution)
    return Row(with_options(row["problem"], options), letter, solution)


TASK = Task("mathqa", "choice", read_row, splits={"test": "test"})
