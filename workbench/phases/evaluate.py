"""Phase `evaluate`: greedy answers of each checkpoint to the ID test split and the OOD tasks.

One row per checkpoint and question is appended as it is answered; a killed phase continues there.
"""

import logging
import time
from pathlib import Path
from typing import Any

from workbench.core.prompts import instruction_prompt
from workbench.engines import Engine, open_engine
from workbench.events import Emit, append_lines, read_lines
from workbench.jobs import Checkpoint, EvaluateJob, TaskSource
from workbench.phases.answering import answer, score_of
from workbench.phases.batches import batches_by_length
from workbench.phases.process import main
from workbench.rundir import PhaseDir
from workbench.tasks import LoadedTask, load_questions

logger = logging.getLogger(__name__)


class _Answers:
    """The rows already on disk, and the engine, opened when there is a question left to ask."""

    def __init__(self, job: EvaluateJob, place: PhaseDir, emit: Emit) -> None:
        self.job, self.place, self.emit = job, place, emit
        self.rows, _ = read_lines(place.outcomes)
        self.engine: Engine | None = None
        self.loaded: str | None = None

    def engine_for(self, checkpoint: Checkpoint) -> Engine:
        if self.engine is None:
            self.engine = open_engine(Path(checkpoint.path), self.job.engine, self.job.threads)
        elif self.loaded != checkpoint.path:
            self.engine.load(Path(checkpoint.path))
        self.loaded = checkpoint.path
        return self.engine


def run(job: EvaluateJob, place: PhaseDir, emit: Emit) -> dict[str, Any]:
    """Answer, grade and score every checkpoint on every task."""
    started = time.time()
    tasks = [("ID", load_task(job.id_task, job, emit))]
    tasks += [("OOD", load_task(source, job, emit)) for source in job.ood_tasks]
    answers = _Answers(job, place, emit)
    total = len(job.checkpoints) * sum(len(task.questions) for _, task in tasks)
    scores = []
    for checkpoint in job.checkpoints:
        for domain, task in tasks:
            rows = _answer(answers, checkpoint, task, total)
            score = {"checkpoint_id": checkpoint.checkpoint_id, "kind": checkpoint.kind}
            score |= score_of(task.name, domain, rows)
            emit("score", score["accuracy"], **{k: v for k, v in score.items() if k != "accuracy"})
            logger.info("%(kind)s on %(task)s: %(num_correct)d of %(num_questions)d", score)
            scores.append(score)
    tokens = sum(row["num_tokens"] for row in answers.rows)
    return {"scores": scores, "num_tokens": tokens, "seconds": time.time() - started}


def load_task(source: TaskSource, job: EvaluateJob, emit: Emit) -> LoadedTask:
    """The first questions of a task's test split; what was left out is noted."""
    task = load_questions(source, "test")
    for problem in task.problems:
        emit("note", text=f"{task.name}: {problem}")
    return task.first(job.evaluate.num_questions)


def _answer(answers: _Answers, checkpoint: Checkpoint, task: LoadedTask, total: int) -> list[dict[str, Any]]:
    """Ask what was not asked yet; return this checkpoint's rows on this task."""
    job, key = answers.job, (checkpoint.checkpoint_id, task.name)
    mine = {row["question_id"]: row for row in answers.rows if (row["checkpoint_id"], row["task"]) == key}
    prompts = [instruction_prompt(q.text) for q in task.questions]
    for batch in batches_by_length(task.questions, prompts, job.engine.batch_size):
        if all(q.question_id in mine for q, _ in batch):
            continue
        made = answer(answers.engine_for(checkpoint), batch, task, job.evaluate.max_new_tokens)
        fresh = [{"checkpoint_id": checkpoint.checkpoint_id} | row for row in made if row["question_id"] not in mine]
        append_lines(answers.place.outcomes, fresh)
        mine |= {row["question_id"]: row for row in fresh}
        answers.rows += fresh
        answers.emit("progress", step=len(answers.rows), total=total, unit="answers")
    return list(mine.values())


if __name__ == "__main__":
    main(EvaluateJob, run)
