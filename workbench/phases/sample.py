"""Phase `sample`: chain-of-thought solutions to the train questions; the correct ones are kept.

Every question is answered `num_samples` times at each temperature. Of equal solutions to a question
one is kept. A killed phase loses the batch in flight and never samples a question's solution twice.
"""

import logging
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from workbench.core.answers import grade
from workbench.core.prompts import STOP_STRINGS, few_shot_prompt
from workbench.engines import Engine, Generation, Request, open_engine
from workbench.events import Emit, append_lines, read_lines
from workbench.jobs import SampleJob
from workbench.phases.batches import batches_by_length, stable_seed
from workbench.phases.process import main
from workbench.rundir import PhaseDir
from workbench.tasks import Question, load_questions

logger = logging.getLogger(__name__)


def draw_questions(
    questions: Sequence[Question], num_questions: int | None, few_shot: int, seed: int
) -> tuple[list[Question], list[Question]]:
    """The questions to sample and the worked examples, none of which is among them.

    Raises:
        ValueError: more asked for than there is.
    """
    order = list(questions)
    Random(f"questions:{seed}").shuffle(order)
    examples = [q for q in order if q.solution][:few_shot]
    if len(examples) < few_shot:
        raise ValueError(
            f"sample.few_shot is {few_shot}, but only {len(examples)} train questions have a worked solution"
        )
    shown = {q.question_id for q in examples}
    rest = [q for q in order if q.question_id not in shown]
    if num_questions is not None and num_questions > len(rest):
        raise ValueError(f"num_questions is {num_questions}, but the train split has {len(rest)} to sample")
    return rest[:num_questions], examples


def run(job: SampleJob, place: PhaseDir, emit: Emit) -> dict[str, Any]:
    """Sample, grade, keep; return counts."""
    started = time.time()
    task = load_questions(job.train_task, "train")
    for problem in task.problems:
        emit("note", text=problem)
    questions, examples = draw_questions(task.questions, job.num_questions, job.sample.few_shot, job.seed)
    shots = [(q.text, q.solution) for q in examples]
    temperatures = [t for t in job.sample.temperatures for _ in range(job.sample.num_samples)]
    prompts = [few_shot_prompt(q.text, shots) for q in questions]
    size = max(1, job.engine.batch_size // len(temperatures))
    rows, _ = read_lines(place.solutions)
    there = {(row["question_id"], row["sample"]) for row in rows}
    total, engine = len(questions) * len(temperatures), None
    for batch in batches_by_length(questions, prompts, size):
        asked = [(q, i, prompt) for q, prompt in batch for i in range(len(temperatures))]
        if any((q.question_id, i) not in there for q, i, _ in asked):
            engine = engine or open_engine(Path(job.model.path), job.engine, job.threads)
            fresh = _sample(engine, asked, temperatures, job, task.answer_format)
            fresh = [row for row in fresh if (row["question_id"], row["sample"]) not in there]
            append_lines(place.solutions, fresh)
            rows += fresh
            emit("kept_share", sum(row["kept"] for row in rows) / len(rows), step=len(rows))
            emit("progress", step=len(rows), total=total, unit="solutions")
    summary = _summary(rows, temperatures) | {
        "num_questions": len(questions),
        "rows_left_out": len(task.problems),
        "seconds": time.time() - started,
    }
    logger.info("%d of %d solutions kept", summary["num_kept"], summary["num_solutions"])
    return summary


def _sample(
    engine: Engine,
    asked: Sequence[tuple[Question, int, str]],
    temperatures: Sequence[float],
    job: SampleJob,
    answer_format: str,
) -> list[dict[str, Any]]:
    """One batch, graded: rows of solutions.jsonl."""
    requests = [
        Request(prompt, temperatures[i], stable_seed("sample", job.seed, job.iteration, q.question_id, i))
        for q, i, prompt in asked
    ]
    made = engine.generate(requests, max_new_tokens=job.sample.max_new_tokens, stop=STOP_STRINGS)
    rows, seen = [], set()
    for (question, sample, _), generation in zip(asked, made, strict=True):
        row = _row(question, sample, temperatures[sample], generation, answer_format)
        row["kept"] = row["is_correct"] and generation.finished and (question.question_id, row["text"]) not in seen
        seen.add((question.question_id, row["text"]))
        rows.append(row)
    return rows


def _row(question: Question, sample: int, temperature: float, made: Generation, answer_format: str) -> dict[str, Any]:
    """One solution as it is recorded."""
    result = grade(made.text, question.reference, answer_format)
    return {
        "question_id": question.question_id,
        "sample": sample,
        "temperature": temperature,
        "question": question.text,
        "reference": question.reference,
        "text": made.text,
        "answer": result.answer,
        "is_correct": result.is_correct,
        "num_tokens": made.num_tokens,
    }


def _summary(rows: Sequence[dict[str, Any]], temperatures: Sequence[float]) -> dict[str, Any]:
    """Counts over all solutions, and the share of correct ones by temperature."""
    asked = Counter(row["temperature"] for row in rows)
    right = Counter(row["temperature"] for row in rows if row["is_correct"])
    return {
        "num_solutions": len(rows),
        "num_correct": sum(right.values()),
        "num_kept": sum(row["kept"] for row in rows),
        "questions_solved": len({row["question_id"] for row in rows if row["is_correct"]}),
        "num_tokens": sum(row["num_tokens"] for row in rows),
        "accuracy_by_temperature": {str(t): right[t] / asked[t] for t in sorted(set(temperatures))},
    }


if __name__ == "__main__":
    main(SampleJob, run)
