"""Phase `evaluate`: each checkpoint's answers to the ID test split and the OOD tasks, and what training saw of them.

Greedy answers, and where asked for sampled ones for pass@k. One row per checkpoint, question and sample
is appended as it is answered; a killed phase continues there.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from workbench.core.overlap import overlaps
from workbench.core.scores import pass_scores, score_of
from workbench.engines import WARM, Engine, batch_size
from workbench.events import Emit, append_lines, read_lines
from workbench.jobs import Checkpoint, EvaluateJob, TaskSource
from workbench.phases.answering import Asking, Batch, answers
from workbench.phases.batches import batches_by_length
from workbench.phases.process import main
from workbench.phases.verdict import go_no_go
from workbench.rundir import PhaseDir
from workbench.tasks import LoadedTask, Question, draw_questions, load_questions

logger = logging.getLogger(__name__)


def run(job: EvaluateJob, place: PhaseDir, emit: Emit) -> dict[str, Any]:
    """Answer, grade and score every checkpoint on every task."""
    started = time.time()
    tasks = [("ID", load_task(job.id_task, job, emit))]
    tasks += [("OOD", load_task(source, job, emit)) for source in job.ood_tasks]
    hits = [hit for _, task in tasks for hit in seen_in_training(job, task)]
    if hits:
        emit("note", text=contamination_note(hits))
    answers = _Answers(job, place, emit, tasks)
    scores = []
    for checkpoint in job.checkpoints:
        about = {"checkpoint_id": checkpoint.checkpoint_id, "kind": checkpoint.kind}
        for domain, task, greedy, sampled in answers.of(checkpoint):
            score = about | score_of(task.name, domain, greedy)
            emit("score", score["accuracy"], **{k: v for k, v in score.items() if k != "accuracy"})
            logger.info("%(kind)s on %(task)s: %(num_correct)d of %(num_questions)d", score)
            scores.append(score)
            if sampled:
                for score in pass_scores(task.name, domain, sampled, job.evaluate.num_samples):
                    emit("pass_at_k", score.pop("pass_at_k"), **about, **score)
    tokens = sum(row["num_tokens"] for row in answers.rows)
    formats = {task.name: task.answer_format for _, task in tasks}
    return {
        "scores": scores,
        "formats": formats,
        "contamination": hits,
        "go_no_go": go_no_go(job, tasks[0][1].name, answers.rows, emit),
        "num_tokens": tokens,
        "seconds": time.time() - started,
    }


def load_task(source: TaskSource, job: EvaluateJob, emit: Emit) -> LoadedTask:
    """The first questions of a task's test split; what was left out is noted."""
    task = load_questions(source, "test")
    for problem in task.problems:
        emit("note", text=f"{task.name}: {problem}")
    return task.first(job.evaluate.num_questions)


def seen_in_training(job: EvaluateJob, task: LoadedTask) -> list[dict[str, Any]]:
    """Test questions found among the train questions that the run uses (iteration 0) or in kept solutions (later)."""
    asked = {question.question_id: question.text for question in task.questions}
    if job.iteration == 0:
        train = load_questions(job.id_task, "train").questions
        drawn, examples = draw_questions(train, job.num_questions, job.sample, job.seed)
        texts = {question.question_id: question.text for question in [*drawn, *examples]}
    else:
        kept = [row for path in job.solutions for row in read_lines(Path(path))[0] if row["kept"]]
        texts = {f"{row['question_id']}/{row['sample']}": row["text"] for row in kept}
    return [
        {
            "source": "train question" if job.iteration == 0 else "kept solution",
            "task": task.name,
            "question_id": hit.test_id,
            "train_id": hit.train_id,
            "kind": hit.kind,
            "similarity": hit.similarity,
        }
        for hit in overlaps(texts, asked, solutions=job.iteration > 0)
    ]


def contamination_note(hits: Sequence[dict[str, Any]]) -> str:
    """How many test questions were seen, and how many are but similar: other questions from one template."""
    similar = sum(hit["kind"] == "run" for hit in hits)
    return (
        f"test questions seen in training: {len(hits) - similar} (scores are shown without them too); "
        f"only similar to a text of it: {similar}"
    )


Rows = list[dict[str, Any]]


class _Answers:
    """The answers of a phase: those on disk, and those still to be asked for."""

    def __init__(self, job: EvaluateJob, place: PhaseDir, emit: Emit, tasks: Sequence[tuple[str, LoadedTask]]) -> None:
        self.job, self.place, self.emit, self.tasks = job, place, emit, tasks
        self.rows, _ = read_lines(place.outcomes)
        self.total = len(job.checkpoints) * sum(len(t.questions) + len(self.sampled(d, t)) for d, t in tasks)

    def sampled(self, domain: str, task: LoadedTask) -> list[tuple[Question, int]]:
        """What is asked for pass@k: (question, sample)."""
        settings = self.job.evaluate
        if domain == "OOD" and settings.sampled_tasks == "id":
            return []
        chosen = task.questions[: settings.sampled_questions]
        return [(question, sample) for question in chosen for sample in range(1, settings.num_samples + 1)]

    def of(self, checkpoint: Checkpoint) -> Iterator[tuple[str, LoadedTask, Rows, Rows]]:
        """(domain, task, greedy rows, sampled rows) of a checkpoint, task by task, as soon as a task is answered.

        What is not there yet is asked for as one stream, so that many replicas of an engine have work to its end.
        """
        job, path, settings = self.job, Path(checkpoint.path), self.job.evaluate
        mine = {_key(row): row for row in self.rows if row["checkpoint_id"] == checkpoint.checkpoint_id}
        asking = Asking.of(job.prompt, path, settings.max_new_tokens, settings.temperature, job.seed)
        sets = [
            (domain, task, [[(question, 0) for question in task.questions], self.sampled(domain, task)])
            for domain, task in self.tasks
        ]
        batches = [[self.batches(wanted, asking) for wanted in both] for _, _, both in sets]
        due = [
            (task, batch)
            for (_, task, _), both in zip(sets, batches, strict=True)
            for batch in chain(*both)
            if not all((task.name, question.question_id, sample) in mine for question, sample, _ in batch)
        ]
        left = {id(batch) for _, batch in due}
        made = answers(self.engine(path), due, asking) if due else iter(())
        for (domain, task, both), of_task in zip(sets, batches, strict=True):
            for batch in chain(*of_task):
                if id(batch) in left:
                    self.keep([{"checkpoint_id": checkpoint.checkpoint_id} | row for row in next(made)], mine)
            greedy, sampled = ([mine[task.name, q.question_id, sample] for q, sample in wanted] for wanted in both)
            yield domain, task, greedy, sampled

    def batches(self, wanted: Sequence[tuple[Question, int]], asking: Asking) -> list[Batch]:
        """What is asked together."""
        texts = [asking.prompts.prompt(question.text) for question, _ in wanted]
        size = batch_size(self.job.engine)
        return [[(*pair, text) for pair, text in batch] for batch in batches_by_length(wanted, texts, size)]

    def engine(self, checkpoint: Path) -> Engine:
        return WARM.holding(checkpoint, self.job.engine, self.job.threads, self.job.trust_remote_code)

    def keep(self, rows: Rows, mine: dict[tuple[str, str, int], dict[str, Any]]) -> None:
        """Record the rows of a batch that are new."""
        fresh = [row for row in rows if _key(row) not in mine]
        append_lines(self.place.outcomes, fresh)
        mine |= {_key(row): row for row in fresh}
        self.rows += fresh
        self.emit("progress", step=len(self.rows), total=self.total, unit="answers")


def _key(row: dict[str, Any]) -> tuple[str, str, int]:
    return row["task"], row["question_id"], row["sample"]


if __name__ == "__main__":
    main(EvaluateJob, run)
