"""Answers to a task's questions: asked and graded."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from workbench.config import PromptConfig
from workbench.core.answers import grade
from workbench.core.prompts import Prompts
from workbench.engines import Engine, Generation, Request
from workbench.phases.batches import stable_seed
from workbench.prompting import open_prompts
from workbench.tasks import LoadedTask, Question


@dataclass(frozen=True)
class Asking:
    """How the questions of a task are put: sample 0 is greedy, every other is drawn at a temperature."""

    prompts: Prompts
    stop: tuple[str, ...]
    max_new_tokens: int
    temperature: float = 0.0
    seed: int = 0

    @classmethod
    def of(cls, config: PromptConfig, model: Any, max_new_tokens: int, temperature: float = 0.0, seed: int = 0):
        """For the model in a directory."""
        return cls(open_prompts(config, model), config.stop, max_new_tokens, temperature, seed)


Batch = Sequence[tuple[Question, int, str]]
"""(question, sample, prompt)."""


def answers(engine: Engine, due: Sequence[tuple[LoadedTask, Batch]], asking: Asking) -> Iterator[list[dict[str, Any]]]:
    """For each batch of questions of a task, one row per question and sample: text, answer, whether it is right."""
    requests = (_requests(task, batch, asking) for task, batch in due)
    made = engine.stream(requests, max_new_tokens=asking.max_new_tokens, stop=asking.stop)
    for (task, batch), generations in zip(due, made, strict=True):
        yield [
            {"task": task.name} | graded(question, sample, found, task.answer_format)
            for (question, sample, _), found in zip(batch, generations, strict=True)
        ]


def _requests(task: LoadedTask, batch: Batch, asking: Asking) -> list[Request]:
    return [
        Request(
            prompt,
            asking.temperature if sample else 0.0,
            stable_seed("evaluate", asking.seed, task.name, question.question_id, sample) if sample else 0,
            asking.prompts.is_whole,
        )
        for question, sample, prompt in batch
    ]


def graded(question: Question, sample: int, made: Generation, answer_format: str) -> dict[str, Any]:
    """An answer or a solution as it is recorded."""
    result = grade(made.text, question.reference, answer_format, made.finished)
    return {
        "question_id": question.question_id,
        "sample": sample,
        "question": question.text,
        "reference": question.reference,
        "text": made.text,
        "answer": result.answer,
        "is_correct": result.is_correct,
        "num_tokens": made.num_tokens,
        "finished": made.finished,
    }
