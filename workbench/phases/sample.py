"""Phase `sample`: chain-of-thought solutions to the train questions; the correct ones are kept.

Every question is answered `num_samples` times at each temperature. Of equal solutions to a question
one is kept. A killed phase loses the batch in flight and never samples a question's solution twice.
"""

import logging
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from workbench.checkpoints import resolve_model
from workbench.core.diversity import alerts, diversity
from workbench.core.prompts import Prompts, Shots, messages
from workbench.engines import WARM, Engine, Request, Unfinished, batch_size, open_server
from workbench.events import Emit, append_lines, read_lines
from workbench.jobs import SampleJob
from workbench.phases.answering import graded
from workbench.phases.batches import batches_by_length, stable_seed
from workbench.phases.process import main
from workbench.prompting import open_prompts, sampling_format
from workbench.rundir import PhaseDir, read_json
from workbench.tasks import Question, draw_questions, load_questions

logger = logging.getLogger(__name__)
Asked = tuple[Question, int, str]
"""(question, sample, prompt)."""


def run(job: SampleJob, place: PhaseDir, emit: Emit) -> dict[str, Any]:
    """Sample, grade, keep; return counts."""
    started = time.time()
    task = load_questions(job.train_task, "train")
    for problem in task.problems:
        emit("note", text=problem)
    questions, examples = draw_questions(task.questions, job.num_questions, job.sample, job.seed)
    sampler = _Sampler(job, [(q.text, q.solution) for q in examples], task.answer_format)
    rows = _sampled(sampler, questions, place, emit)
    summary = _summary(rows, sampler.temperatures) | {
        "num_questions": len(questions),
        "formats": {task.name: task.answer_format},
        "diversity": watched_diversity(rows, job, emit),
        "rows_left_out": len(task.problems),
        "seconds": time.time() - started,
    }
    logger.info("%d of %d solutions kept", summary["num_kept"], summary["num_solutions"])
    return summary


def _sampled(sampler: "_Sampler", questions: Sequence[Question], place: PhaseDir, emit: Emit) -> list[dict[str, Any]]:
    """The rows of solutions.jsonl: those on disk, and those that are still to be asked for.

    Raises:
        Unfinished: a teacher's server failed for good; what it had answered by then is on disk.
    """
    rows, _ = read_lines(place.solutions)
    there = {(row["question_id"], row["sample"]) for row in rows}
    kept = {(row["question_id"], row["text"]) for row in rows if row["kept"]}
    batches = sampler.batches(questions)
    for made, problem in sampler.sample(batches, there):
        fresh = [row for row in made if (row["question_id"], row["sample"]) not in there]
        for row in fresh:
            solution = (row["question_id"], row["text"])
            row["kept"] = row["is_correct"] and row["finished"] and solution not in kept
            if row["kept"]:
                kept.add(solution)
        append_lines(place.solutions, fresh)
        rows += fresh
        if problem:
            raise problem
        emit("kept_share", sum(row["kept"] for row in rows) / len(rows), step=len(rows))
        emit("progress", step=len(rows), total=sum(map(len, batches)), unit="solutions")
    return rows


def watched_diversity(rows: Sequence[dict[str, Any]], job: SampleJob, emit: Emit) -> dict[str, float]:
    """Diversity of the solutions, as metrics; an alert where they have grown alike since the first iteration."""
    found = diversity(rows)
    for name, value in found.items():
        emit(name, value, step=len(rows))
    if job.first_result and (first := read_json(Path(job.first_result))):
        for text in alerts(first["summary"]["diversity"], found, job.monitor.model_dump()):
            emit("alert", text=text)
    return found


class _Sampler:
    """Who samples, and how it is asked: the run's own model, or a teacher."""

    def __init__(self, job: SampleJob, shots: Shots, answer_format: str) -> None:
        self.job, self.teacher = job, job.teacher
        self.shots, self.answer_format = shots, answer_format
        self.temperatures = [t for t in job.sample.temperatures for _ in range(job.sample.num_samples)]
        here = self.teacher.model and not self.teacher.url
        self.trust = self.teacher.trust_remote_code if here else job.trust_remote_code
        found = resolve_model(self.teacher.model, trust_remote_code=self.trust) if here else job.model.path
        self.model = Path(found)
        asked = sampling_format(job.prompt, self.teacher)
        self.system = asked.system
        self.is_chat = asked.format == "chat"
        self.prompts = Prompts() if self.teacher.url else open_prompts(asked, self.model)
        self.batch_size = 4 * self.teacher.concurrency if self.teacher.url else batch_size(job.engine)

    def engine(self) -> Engine:
        if self.teacher.url:
            return open_server(self.teacher)
        return WARM.holding(self.model, self.job.engine, self.job.threads, self.trust)

    def batches(self, questions: Sequence[Question]) -> list[list[Asked]]:
        """(question, sample, prompt) in batches that depend on the questions alone, of whole ones where one fits."""
        samples = len(self.temperatures)
        wanted = [(question, sample) for question in questions for sample in range(samples)]
        prompts = [prompt for q in questions for prompt in [self.prompts.prompt(q.text, self.shots)] * samples]
        size = self.batch_size // samples * samples or self.batch_size
        return [[(*pair, prompt) for pair, prompt in batch] for batch in batches_by_length(wanted, prompts, size)]

    def sample(
        self, batches: Sequence[Sequence[Asked]], there: Collection[tuple[str, int]]
    ) -> Iterator[tuple[list[dict[str, Any]], Unfinished | None]]:
        """For each batch that is not wholly `there`: rows of solutions.jsonl, graded; and why some are missing."""
        due = [batch for batch in batches if any((q.question_id, i) not in there for q, i, _ in batch)]
        if self.teacher.url:
            # What a model here answers depends on its whole batch, in the last digits; what a server answers is paid.
            due = [[asked for asked in batch if (asked[0].question_id, asked[1]) not in there] for batch in due]
        if not due:
            return
        requests = ([self.request(*asked) for asked in batch] for batch in due)
        longest, stop = self.job.sample.max_new_tokens, self.job.prompt.stop
        stream = self.engine().stream(requests, max_new_tokens=longest, stop=stop)
        for batch in due:
            try:
                made, problem = next(stream), None
            except Unfinished as error:
                made, problem = error.made, error
            answered = [(q, i, answer) for (q, i, _), answer in zip(batch, made, strict=True) if answer is not None]
            rows = [
                {"temperature": self.temperatures[i]} | graded(q, i, answer, self.answer_format)
                for q, i, answer in answered
            ]
            yield rows, problem

    def request(self, question: Question, sample: int, prompt: str) -> Request:
        """What an engine is asked."""
        return Request(
            prompt,
            self.temperatures[sample],
            stable_seed("sample", self.job.seed, self.job.iteration, question.question_id, sample),
            self.prompts.is_whole,
            tuple(messages(question.text, self.shots, self.system)) if self.teacher.url and self.is_chat else None,
        )


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
