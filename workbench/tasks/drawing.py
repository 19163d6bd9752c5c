"""Which train questions a run samples, and which are shown with their solutions."""

from collections.abc import Sequence
from random import Random

from workbench.config import SampleConfig
from workbench.tasks.base import Question


def draw_questions(
    questions: Sequence[Question], num_questions: int | None, sample: SampleConfig, seed: int
) -> tuple[list[Question], list[Question]]:
    """The questions to sample and the worked examples, none of which is among them.

    Raises:
        ValueError: more asked for than there is, or an example that cannot be one.
    """
    order = list(questions)
    Random(f"questions:{seed}").shuffle(order)
    examples = _chosen(order, sample.examples) if sample.examples else [q for q in order if q.solution]
    examples = examples[: sample.few_shot]
    if len(examples) < sample.few_shot:
        raise ValueError(
            f"sample.few_shot is {sample.few_shot}, but only {len(examples)} train questions have a worked solution"
        )
    shown = {q.question_id for q in examples}
    rest = [q for q in order if q.question_id not in shown]
    if not rest:
        raise ValueError(
            f"sample.few_shot is {sample.few_shot}, which shows all {len(order)} train questions and leaves none to "
            "sample; lower it, or add train questions"
        )
    if num_questions is not None and num_questions > len(rest):
        raise ValueError(f"num_questions is {num_questions}, but the train split has {len(rest)} to sample")
    return rest[:num_questions], examples


def _chosen(questions: Sequence[Question], ids: Sequence[str]) -> list[Question]:
    """Examples chosen by hand, in the order given."""
    known = {question.question_id: question for question in questions}
    for name in ids:
        if name not in known:
            raise ValueError(
                f"sample.examples names {name!r}, which is no train question; they are train-0, train-1, ..."
            )
        if not known[name].solution:
            raise ValueError(f"sample.examples names {name!r}, which has no worked solution to show")
    return [known[name] for name in ids]
