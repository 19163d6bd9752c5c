"""What a task is: where its rows come from, and how a row becomes a question."""

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field, replace
from typing import Any, Literal

AnswerFormat = Literal["number", "math", "choice", "text"]


@dataclass(frozen=True)
class Question:
    """One question of a task."""

    question_id: str
    """<split>-<row>, counted from 0 in the file."""
    text: str
    reference: str
    solution: str | None = None
    """A worked solution, where the data set has one."""


@dataclass(frozen=True)
class Row:
    """The parts of a question that a data set's row holds."""

    text: str
    reference: str
    solution: str | None = None


@dataclass(frozen=True)
class Task:
    """A known data set."""

    name: str
    answer_format: AnswerFormat
    read_row: Callable[[Mapping[str, Any]], Row]
    """Raises KeyError, ValueError or TypeError for a row it cannot use."""
    hub: str | None = None
    """Hugging Face hub data set, `owner/name` or `owner/name:config`."""
    splits: Mapping[str, str] = field(default_factory=lambda: {"train": "train", "test": "test"})
    """Our split -> the file's and the hub's split."""
    order: str | None = None
    """How its rows stand, where the first ones are no sample of all."""


@dataclass(frozen=True)
class LoadedTask:
    """The usable questions of one split."""

    name: str
    answer_format: AnswerFormat
    questions: tuple[Question, ...]
    num_rows: int
    problems: tuple[str, ...] = ()
    """A sentence for each row that was left out, with its number."""

    def first(self, count: int | None) -> "LoadedTask":
        """The same task with its first `count` questions; None keeps all."""
        return replace(self, questions=self.questions[:count])

    def without(self, question_ids: Set[str]) -> "LoadedTask":
        """The same task less some questions."""
        return replace(self, questions=tuple(q for q in self.questions if q.question_id not in question_ids))


def with_options(text: str, options: Mapping[str, str]) -> str:
    """A question followed by its options: "... (A) 12 (B) 16"."""
    return f"{text.strip()} " + " ".join(f"({mark}) {option.strip()}" for mark, option in options.items())


def plain_number(value: float | str) -> str:
    """A number as people write it: 43.0 is "43"."""
    number = float(value)
    return str(int(number)) if number.is_integer() else str(number)
