"""A task that a person describes in a TOML file, without Python.

    path = "questions.{split}.jsonl"     # beside this file, or absolute; {split}: train, test, validation
    question = "problem"                 # field names
    answer = "target"
    format = "number"                    # number, math, choice or text
    solution = "rationale"               # optional: worked solutions, for few-shot examples
    options = "choices"                  # optional: a list or table of options, or a text that lists them

The answer is what stands behind `####`, in the last box, or the field as it is. For a choice it is the
letter, the option's number counted from 0, or the option's text; a text in quotes that could be either
number or option, as "2", is the option.
"""

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, model_validator

from workbench.config import Section
from workbench.core.answers import last_boxed
from workbench.tasks.base import AnswerFormat, Row, Task, with_options

LETTERS = "ABCDEFGHIJ"
"""Of options, as far as answers are searched for them."""
SPLITS = ("train", "test", "validation")


class TaskFile(Section):
    """What the TOML file says."""

    path: str = Field(min_length=1)
    """JSON Lines file of the questions; with {split} in it one file for each split, without it the test split."""
    question: str = Field(min_length=1)
    """Field of the question."""
    answer: str = Field(min_length=1)
    """Field of the answer."""
    format: AnswerFormat
    """How answers are written and compared."""
    solution: str | None = None
    """Field of a worked solution."""
    options: str | None = None
    """Field of the options of a multiple-choice question."""

    @model_validator(mode="after")
    def _fits(self) -> "TaskFile":
        if self.options and self.format != "choice":
            raise ValueError(f"options are for format 'choice', got format {self.format!r}")
        return self

    def read_row(self, row: Mapping[str, Any]) -> Row:
        """A row of the file; see `Task.read_row`."""
        for field in (self.question, self.answer, *([self.options] if self.options else [])):
            if row[field] is None or str(row[field]).strip() == "":
                raise ValueError(f"{field} is empty")
        text, answer = str(row[self.question]).strip(), row[self.answer]
        options = _options(row[self.options]) if self.options else {}
        if isinstance(options, str):
            text, options = f"{text} {options.strip()}", {}
        reference = _letter(answer, options) if self.format == "choice" else _final(str(answer))
        if not reference:
            raise ValueError(f"{self.answer} {str(answer)[-40:]!r} ends without an answer")
        worked = str(row[self.solution]).strip() if self.solution and row.get(self.solution) else None
        if worked is None and "####" in str(answer):
            worked = f"{str(answer).rpartition('####')[0].strip()}\nThe answer is {reference}."
        return Row(with_options(text, options) if options else text, reference, worked)


def read_task(file: Path) -> tuple[Task, dict[str, Path]]:
    """The task that a TOML file describes, named after it, and its files by split.

    Raises:
        ValueError: not valid TOML, an unknown or missing key, or no such file.
    """
    try:
        found = TaskFile.model_validate(tomllib.loads(file.read_text(encoding="utf-8")))
    except ValidationError as error:
        known = ", ".join(TaskFile.model_fields)
        problems = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in error.errors())
        raise ValueError(f"{file}: {problems}; the keys of a task file are {known}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is no TOML file: {error}") from None
    splits = SPLITS if "{split}" in found.path else ("test",)
    files = {split: (file.parent / found.path.replace("{split}", split)).absolute() for split in splits}
    if not any(path.is_file() for path in files.values()):
        raise ValueError(f"{file}: no file {', '.join(map(str, files.values()))}")
    return Task(file.stem, found.format, found.read_row), files


def _final(answer: str) -> str:
    """The final answer in an answer field."""
    if "####" in answer:
        return answer.rpartition("####")[2].strip()
    boxed = last_boxed(answer)
    return answer.strip() if boxed is None else boxed


def _options(value: Any) -> dict[str, str] | str:
    """Options by letter; a text that lists them stays a text."""
    if isinstance(value, str):
        return value
    if len(value) > len(LETTERS):
        raise ValueError(f"{len(value)} options, and at most {len(LETTERS)} have a letter ({LETTERS[0]}-{LETTERS[-1]})")
    if isinstance(value, Mapping):
        return {str(letter).upper(): str(option) for letter, option in value.items()}
    return dict(zip(LETTERS, map(str, value), strict=False))


def _letter(answer: Any, options: Mapping[str, str]) -> str:
    """The option letter that an answer names; `options` is empty where the question's text lists them."""
    text, letters = str(answer).strip(), list(options or LETTERS)
    called = re.fullmatch(r"\(?([A-Za-z])[).:]?", text)
    if called and called[1].upper() in letters:
        return called[1].upper()
    number = re.fullmatch(r"(\d+)(?:\.0)?", text)
    numbered = letters[int(number[1])] if number and int(number[1]) < len(letters) else None
    written = next((letter for letter, option in options.items() if option.strip() == text), None)
    if found := (written or numbered) if isinstance(answer, str) else (numbered or written):
        return found
    raise ValueError(
        f"answer {text!r} is no option: {letters[0]}-{letters[-1]}, 0-{len(letters) - 1} or an option's text"
    )
