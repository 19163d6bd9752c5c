"""Sampled solutions and answers out of the store, filtered and by the page, with what the model was sent."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pandas import DataFrame

from workbench import checkpoints, store
from workbench.config import PromptConfig, RunConfig, TeacherConfig, task_name
from workbench.core.prompts import Prompts, Shots, messages
from workbench.jobs import EvaluateJob, SampleJob, TaskSource
from workbench.prompting import open_prompts, sampling_format
from workbench.rundir import PhaseDir, read_json
from workbench.tasks import TASKS, check_source, draw_questions, load_questions

Verdict = Literal["all", "right", "wrong", "kept", "right, not kept", "no answer"]
VERDICTS = {
    "all": "TRUE",
    "right": "is_correct",
    "wrong": "NOT is_correct",
    "kept": "kept",
    "right, not kept": "is_correct AND NOT kept",
    "no answer": "answer IS NULL",
}


@dataclass(frozen=True)
class Filter:
    """Which rows are wanted."""

    run_id: str
    iteration: int | None = None
    verdict: Verdict = "all"
    temperature: float | None = None
    text: str = ""
    """In the question or the solution, in any case."""


def sampled(db: Path, wanted: Filter, limit: int, offset: int = 0) -> tuple[int, DataFrame]:
    """(how many there are, one page of them) of the sampled solutions to train questions."""
    where = f"""
        run_id = ? AND (? IS NULL OR iteration = ?) AND {VERDICTS[wanted.verdict]}
        AND (? IS NULL OR temperature = ?) AND {_SEARCH}
    """
    values = [wanted.run_id, *[wanted.iteration] * 2, *[wanted.temperature] * 2, *[wanted.text] * 3]
    return _page(db, "solutions", where, values, "iteration, question_id, sample", limit, offset)


_SEARCH = "(? = '' OR contains(lower(question), lower(?)) OR contains(lower(text), lower(?)))"


def answered(
    db: Path, checkpoint_id: str, task: str, verdict: Verdict, text: str, limit: int, offset: int = 0
) -> tuple[int, DataFrame]:
    """(how many there are, one page of them) of a checkpoint's answers to a test set."""
    where = f"checkpoint_id = ? AND task = ? AND {VERDICTS[verdict]} AND {_SEARCH}"
    values = [checkpoint_id, task, *[text] * 3]
    return _page(db, "outcomes", where, values, "length(question_id), question_id, sample", limit, offset)


def _page(
    db: Path, table: str, where: str, values: list[Any], order: str, limit: int, offset: int
) -> tuple[int, DataFrame]:
    count = store.query(db, f"SELECT count(*) AS n FROM {table} WHERE {where}", values)["n"][0]
    rows = store.query(
        db, f"SELECT * FROM {table} WHERE {where} ORDER BY {order} LIMIT ? OFFSET ?", [*values, limit, offset]
    )
    return int(count), rows


def flipped(db: Path, first: str, second: str, task: str) -> DataFrame:
    """Questions on which two checkpoints' greedy answers differ in being right; what the second gained comes first.

    Columns: question_id, question, reference, gained, and text, answer of either (`_first`, `_second`).
    """
    return store.query(
        db,
        """
        SELECT a.question_id, a.question, a.reference, b.is_correct AS gained, a.text AS text_first,
               a.answer AS answer_first, b.text AS text_second, b.answer AS answer_second
        FROM outcomes a JOIN outcomes b USING (task, question_id, sample)
        WHERE a.checkpoint_id = ? AND b.checkpoint_id = ? AND task = ? AND sample = 0 AND a.is_correct <> b.is_correct
        ORDER BY gained DESC, length(question_id), question_id
        """,
        [first, second, task],
    )


def formats(db: Path, run_id: str) -> dict[str, str]:
    """Answer format of each task of a run, as its phases recorded it."""
    rows = store.query(
        db, "SELECT summary->'formats' AS formats FROM phases WHERE run_id = ? AND summary IS NOT NULL", [run_id]
    )
    found: dict[str, str] = {name: task.answer_format for name, task in TASKS.items()}
    for text in rows["formats"].dropna():
        found |= json.loads(text)
    return found


def sent(place: PhaseDir, question: str) -> str:
    """The prompt of a question, exactly as the model of this phase was sent it.

    Raises:
        ValueError: the task's files have gone.
    """
    job = read_json(place.job)
    if place.phase == "evaluate":
        evaluate = EvaluateJob.model_validate(job)
        return open_prompts(evaluate.prompt, Path(evaluate.checkpoints[0].path)).prompt(question)
    return sampling_prompt(SampleJob.model_validate(job), question)


def sampling_prompt(job: SampleJob, question: str) -> str:
    """The prompt of a train question, with its worked examples."""
    task = load_questions(job.train_task, "train")
    _, examples = draw_questions(task.questions, job.num_questions, job.sample, job.seed)
    return _put(job.prompt, job.teacher, job.model.path, question, [(q.text, q.solution) for q in examples])


def _put(prompt: PromptConfig, teacher: TeacherConfig, model: str, question: str, shots: Shots) -> str:
    """A question as whoever samples is sent it: the run's own model, or the teacher."""
    asked = sampling_format(prompt, teacher)
    if not teacher.url:
        return open_prompts(asked, checkpoints.resolve_model(teacher.model or model)).prompt(question, shots)
    if asked.format == "plain":
        return Prompts().prompt(question, shots)
    turns = messages(question, shots, asked.system)  # the server applies the template
    return "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in turns)


def preview(config: RunConfig) -> list[tuple[str, str]]:
    """(what for, text) of the prompts that a run would send, with the first question of each task.

    What would have to be fetched from the hub is named instead.

    Raises:
        ValueError: a task or the model's chat template cannot be read here.
    """
    from_hub = "(comes from the hub when the run starts)"
    model = checkpoints.absolute_model(config.model)
    if checkpoints.check_model(config.model) is None and config.prompt.format == "chat":
        return [("the model's chat template", from_hub)]
    prompts = open_prompts(config.prompt, Path(model))
    train = check_source(TaskSource(task=config.train_task, datasets=config.datasets), "train")
    texts = [(f"sampling, {config.train_task}", from_hub)]
    if train is not None:
        questions, examples = draw_questions(train.questions, config.num_questions, config.sample, config.seed)
        shots = [(q.text, q.solution) for q in examples]
        solution = questions[0].solution or "(a kept solution)"
        trained = prompts.prompt(questions[0].text) + prompts.response(solution)
        texts = [("fine-tuning: prompt and response", trained)]
        if config.data.real_share < 1:
            sampled = _put(config.prompt, config.teacher, model, questions[0].text, shots)
            texts.insert(0, (f"sampling, {train.name}", sampled))
    for name in (config.train_task, *config.eval_tasks):
        task = check_source(TaskSource(task=name, datasets=config.datasets), "test")
        asked = from_hub if task is None else prompts.prompt(task.questions[0].text)
        texts.append((f"evaluation, {task_name(name)}", asked))
    return texts
