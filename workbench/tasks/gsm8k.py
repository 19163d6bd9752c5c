"""GSM8K, grade-school word problems (Cobbe et al. 2021, arXiv 2110.14168).

    {"question": "Ida has 3 boxes of 4 pens. How many pens?", "answer": "3*4 = <<3*4=12>>12 pens.\\n#### 12"}

The answer stands behind `####`; the `<<...>>` marks are for a calculator and are no part of the prose.
"""

import re
from collections.abc import Mapping
from typing import Any

from workbench.tasks.base import Row, Task


def read_row(row: Mapping[str, Any]) -> Row:
    """Question, number behind ####, solution without calculator marks."""
    solution, mark, answer = row["answer"].rpartition("####")
    reference = answer.strip().replace(",", "")
    if not mark or not reference:
        raise ValueError("no answer behind ####")
    work = re.sub(r"<<[^>]*>>", "", solution).strip()
    return Row(row["question"].strip(), reference, f"{work}\nThe answer is {reference}.")


TASK = Task("gsm8k", "number", read_row, hub="openai/gsm8k:main")
