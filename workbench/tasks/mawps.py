"""MAWPS, short word problems (Koncel-Kedziorski et al. 2016).

{"input": "Joan had 7 shells . She gave 2 away . How many are left ?", "target": 5.0, "type": "singleop"}
"""

from collections.abc import Mapping
from typing import Any

from workbench.tasks.base import Row, Task, plain_number


def read_row(row: Mapping[str, Any]) -> Row:
    """Question and number."""
    return Row(row["input"].strip(), plain_number(row["target"]))


TASK = Task("mawps", "number", read_row, splits={"test": "test"})
