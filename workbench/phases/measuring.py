"""Measuring merges: made in memory, straight into an engine that stays warm, and asked a lab's questions."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from workbench import lab as labs
from workbench.core.scores import score_of
from workbench.engines import Engine, batch_size, open_engine
from workbench.jobs import TaskSource
from workbench.labdir import LabConfig, Point, point_id
from workbench.merging.stream import Models, merged_tensors, recipe_for
from workbench.phases.answering import Asking, answers
from workbench.phases.batches import batches_by_length
from workbench.tasks import LoadedTask, draw_questions, load_questions

Rows = list[dict[str, Any]]


class Measuring:
    """The merges of one lab's base, start and sft, one after the other."""

    def __init__(self, config: LabConfig, models: Models, importance: Sequence[float] | None) -> None:
        self.config, self.models, self.importance = config, models, importance
        self.engine: Engine | None = None
        self.loaded: str | None = None
        self.tasks: dict[tuple[str, str], LoadedTask] = {}

    def measure(
        self, request: Point, answered: Rows, keep: Callable[[Rows], None], look: Callable[[int, int], None]
    ) -> list[dict[str, Any]]:
        """Accuracy on each task; questions whose rows are in `answered` are not asked again.

        Fresh rows go to `keep` batch by batch; `look(done, total)` is called before each, and may raise to give up.
        """
        name = point_id(request.merge, request.seed)
        tasks = [(domain, self.task(source, split, request)) for domain, source, split in self.sources(request)]
        total, done = sum(len(task.questions) for _, task in tasks), 0
        scores = []
        for domain, task in tasks:
            known = {
                row["question_id"]: row
                for row in answered
                if (row["point_id"], row["task"], row["split"]) == (name, task.name, request.split)
            }
            asking = Asking.of(self.config.prompt, Path(self.config.start), self.config.max_new_tokens)
            prompts = [asking.prompts.prompt(q.text) for q in task.questions]
            for pairs in batches_by_length(task.questions, prompts, batch_size(self.config.engine)):
                batch = [(question, 0, prompt) for question, prompt in pairs]
                look(done, total)
                if any(q.question_id not in known for q, _, _ in batch):
                    fresh = next(answers(self.engine_for(request, name), [(task, batch)], asking))
                    fresh = [{"point_id": name, "split": request.split} | row for row in fresh]
                    fresh = [row for row in fresh if row["question_id"] not in known]
                    keep(fresh)
                    known |= {row["question_id"]: row for row in fresh}
                done += len(batch)
            scores.append(score_of(task.name, domain, list(known.values())))  # also of an earlier, larger request
        return scores

    def sources(self, request: Point) -> list[tuple[str, TaskSource, str]]:
        """(domain, task, split) of what a point is measured on."""
        if request.split == "validation":
            usable, remarks = labs.tuning_tasks(self.config)
            if not usable:
                raise ValueError("; ".join(remarks))
            return usable
        sources = [("ID", self.config.id_task)] if self.config.id_task else []
        return [(domain, s, "test") for domain, s in [*sources, *(("OOD", s) for s in self.config.ood_tasks)]]

    def task(self, source: TaskSource, split: str, request: Point) -> LoadedTask:
        """The questions to measure on; of the run's own train split only those that it did not use."""
        if (source.task, split) not in self.tasks:
            task = load_questions(source, split)
            if split == "train" and source == self.config.id_task:
                drawn, shown = draw_questions(
                    task.questions, self.config.num_questions, self.config.sample, self.config.seed
                )
                task = task.without({q.question_id for q in (*drawn, *shown)})
            if not task.questions:
                raise ValueError(
                    f"the run trained on every train question of {task.name}, and it has no validation split; put "
                    f"other questions into {task.name}/validation.jsonl in the datasets folder"
                )
            self.tasks[source.task, split] = task
        return self.tasks[source.task, split].first(request.num_questions)

    def engine_for(self, request: Point, name: str) -> Engine:
        """The warm engine with this merge in it."""
        if self.engine is None:
            self.engine = open_engine(
                Path(self.config.start), self.config.engine, torch.get_num_threads(), self.config.trust_remote_code
            )
        if self.loaded != name:
            recipe = recipe_for(self.models, request.merge, request.seed, self.importance)
            self.loaded = None  # a merge that is refused half-way leaves neither itself nor the one before
            self.engine.load_tensors(
                (entry.name, as_tensor(array, entry))
                for entry, array in merged_tensors(self.models, recipe, threads=torch.get_num_threads())
            )
            self.loaded = name
        return self.engine


def as_tensor(array: Any, entry: Any) -> torch.Tensor:
    """A merged flat array as a tensor of its shape."""
    flat = torch.from_numpy(array)
    return (flat.view(torch.bfloat16) if entry.dtype == "BF16" else flat).view(entry.shape)
