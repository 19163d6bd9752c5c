"""The pocket tasks, shipped in data/pocket/tasks and made by `workbench pocket build`.

{"question": "Which number is 2 times 3? (A) 5 (B) 6 (C) 7 (D) 9", "answer": "B", "solution": "..."}
"""

from workbench.tasks.base import Task
from workbench.tasks.generic import read_row

OOD = {"validation": "validation", "test": "test"}
TASKS = [
    Task("pocket_steps", "number", read_row, splits={"train": "train"} | OOD),
    Task("pocket_words", "number", read_row, splits=OOD),
    Task("pocket_choice", "choice", read_row, splits=OOD),
    Task("pocket_compare", "number", read_row, splits=OOD),
]
