"""Grading outside a run: a file of solutions, and what a run has recorded, which needs no sampling again."""

import json
import os
import secrets
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from workbench.core import answers, symbolic
from workbench.core.answers import Grade, as_number, grade, last_boxed

Format = Literal["auto", "number", "math", "choice"]


def grader_version() -> str:
    """The package's version and a hash of the grader's code: two gradings with the same one agree."""
    code = b"".join(Path(module.__file__).read_bytes() for module in (answers, symbolic))
    return f"{version('workbench')}+{sha256(code).hexdigest()[:8]} math-verify {version('math-verify')}"


def grade_file(file: Path, out: Path | None, answer_format: Format) -> dict[str, int]:
    """Grade {"reference", "solution"} rows of a JSON Lines file; write them with answer, is_correct and rule.

    Returns counts: rows, right, without answer. Nothing is written where a line is bad.

    Raises:
        ValueError: a line that is no such row; its number and the cure are named.
    """
    rows = list(_read(file))
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        grades = list(pool.map(lambda row: grade_row(row["solution"], row["reference"], answer_format), rows))
    graded = [
        row | {"answer": found.answer, "is_correct": found.is_correct, "rule": found.rule}
        for row, found in zip(rows, grades, strict=True)
    ]
    if out is not None:
        scratch = out.with_name(f".{out.name}.{secrets.token_hex(4)}.tmp")
        scratch.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in graded), encoding="utf-8")
        scratch.replace(out)
    return {
        "rows": len(graded),
        "right": sum(row["is_correct"] for row in graded),
        "without_answer": sum(row["answer"] is None for row in graded),
    }


def grade_row(solution: str, reference: str, answer_format: Format) -> Grade:
    """Grade one solution against a reference, which may itself be a worked solution ending in #### or a box."""
    expected = reference.strip()
    if "####" in expected:
        expected = expected.rpartition("####")[2].strip()
    elif (boxed := last_boxed(expected)) is not None:
        expected = boxed
    return grade(solution, expected, guess_format(expected) if answer_format == "auto" else answer_format)


def guess_format(reference: str) -> Literal["number", "math", "choice"]:
    """How an answer is written: a capital option letter, a number, else mathematics."""
    if len(reference) == 1 and reference in "ABCDEFGHIJ":
        return "choice"
    return "number" if as_number(reference) is not None and reference.isascii() and "\\" not in reference else "math"


def _read(file: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file, checked."""
    empty = True
    # Not splitlines: JSON may hold other line separators as they are, as our own output does.
    for number, line in enumerate(file.read_text(encoding="utf-8-sig").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{file}, line {number}: no JSON ({error})") from None
        if not isinstance(row, dict):
            raise ValueError(f"{file}, line {number}: a row is an object with reference and solution, got {line[:60]}")
        for name in ("reference", "solution"):
            if name not in row:
                fields = ", ".join(row) or "none"
                raise ValueError(f"{file}, line {number}: no field {name!r}; the row has {fields}")
            if isinstance(row[name], bool) or not isinstance(row[name], str | int | float):
                raise ValueError(f"{file}, line {number}: {name} must be a text or a number, got {row[name]!r}")
        empty = False
        yield row | {name: str(row[name]) for name in ("reference", "solution")}
    if empty:
        raise ValueError(f"{file} has no rows")


def changes(rows: Iterable[dict[str, Any]], formats: dict[str, str]) -> list[dict[str, Any]]:
    """What another grading of recorded answers changes: rows with task, question_id, sample, text, reference.

    formats: the answer format of each task.
    """
    rows = list(rows)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        grades = pool.map(lambda row: regrade_row(row, formats), rows)
        return [
            {
                "checkpoint_id": row.get("checkpoint_id", ""),
                "task": row["task"],
                "question_id": row["question_id"],
                "sample": row["sample"],
                "was_answer": row["answer"],
                "was_correct": row["is_correct"],
                "answer": found.answer,
                "is_correct": found.is_correct,
                "rule": found.rule,
            }
            for row, found in zip(rows, grades, strict=True)
            if (found.answer, found.is_correct) != (row["answer"], row["is_correct"])
        ]


def regrade_row(row: dict[str, Any], formats: dict[str, str]) -> Grade:
    """The grade of a recorded row by the grader of today."""
    finished = row.get("finished")
    return grade(row["text"], row["reference"], formats[row["task"]], finished is None or bool(finished))


def disagreements(rows: Sequence[dict[str, Any]], formats: dict[str, str]) -> list[dict[str, Any]]:
    """Rows on which our grader and math-verify's own extraction and comparison differ about right or wrong."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        opinions = pool.map(
            lambda row: symbolic.second_opinion(row["text"], row["reference"], formats[row["task"]]), rows
        )
        return [
            row | {"second_answer": answer, "second_is_correct": right}
            for row, (answer, right) in zip(rows, opinions, strict=True)
            if right != row["is_correct"]
        ]
