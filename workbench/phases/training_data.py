"""What a checkpoint is fine-tuned on: which solutions, as token ids, laid out in batches."""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from workbench.events import read_lines
from workbench.examples import answers
from workbench.jobs import SftJob
from workbench.prompting import open_prompts
from workbench.tasks import draw_questions, load_questions

Example = dict[str, list[int]]
IGNORED = -100
"""Label of a token that carries no loss."""
LONG = 2048
"""Tokens in a row at which attention costs about as much as everything else."""


def chosen_solutions(job: SftJob) -> tuple[list[tuple[str, str]], dict[str, int]]:
    """(question, solution) pairs to learn from, in a fixed order, and how many came from where.

    Raises:
        ValueError: nothing to train on.
    """
    now, before = kept(job.solutions), kept(job.earlier)
    draw = random.Random(f"earlier:{job.seed}:{job.iteration}")
    before = draw.sample(before, round(job.earlier_share * len(before)))
    sampled = list(dict.fromkeys(now + before))
    worked = worked_solutions(job, len(sampled))
    if not sampled and not worked:
        raise ValueError(
            "no sampled solution was correct, so there is nothing to fine-tune on; "
            "raise num_questions, num_samples or the temperatures, or take a stronger model"
        )
    counts = {"num_sampled_now": len(now), "num_sampled_earlier": len(sampled) - len(now), "num_worked": len(worked)}
    return sampled + worked, counts


def kept(files: Sequence[str]) -> list[tuple[str, str]]:
    """The kept solutions of sampling phases, each (question, text) once, in an order that no chance decides."""
    rows = [row for path in files for row in read_lines(Path(path))[0] if row["kept"]]
    rows.sort(key=lambda row: (row["question_id"], row["sample"], row["text"]))
    return list(dict.fromkeys((row["question"], row["text"]) for row in rows))


def worked_solutions(job: SftJob, num_sampled: int) -> list[tuple[str, str]]:
    """The train split's own solutions, as many as make up `real_share` of the examples, or as there are.

    Raises:
        ValueError: they are asked for, and the task has none.
    """
    share = job.data.real_share
    if not share:
        return []
    task = load_questions(job.train_task, "train")
    questions, _ = draw_questions(task.questions, job.num_questions, job.sample, job.seed)
    found = [(q.text, q.solution) for q in questions if q.solution]
    if not found:
        raise ValueError(
            f"task {task.name} has no worked solutions to learn from: set data.real_share to 0, got {share:g}"
        )
    if share == 1:
        return found
    wanted = min(len(found), _wanted(share, num_sampled))
    return random.Random(f"worked:{job.seed}:{job.iteration}").sample(found, wanted)


def _wanted(share: float, num_sampled: int) -> int:
    """How many worked solutions beside so many sampled ones make up `share` of all."""
    return round(num_sampled * share / (1 - share))


def too_few_worked(job: SftJob, counts: Mapping[str, int]) -> str | None:
    """A sentence where the train questions have fewer worked solutions than `real_share` asks for."""
    share, worked = job.data.real_share, counts["num_worked"]
    sampled = counts["num_sampled_now"] + counts["num_sampled_earlier"]
    if share in (0, 1) or worked >= _wanted(share, sampled):
        return None
    return (
        f"Real solutions are {100 * worked / (worked + sampled):.0f} % of what is learned from, and data.real_share "
        f"asks for {100 * share:g} %: the train questions have no more than {worked}."
    )


def training_examples(job: SftJob, tokenizer: PreTrainedTokenizerBase) -> tuple[list[Example], dict[str, int]]:
    """Token ids and labels, loss on response tokens only; counts of what was used and what was too long.

    Raises:
        ValueError: nothing to train on.
    """
    pairs, counts = chosen_solutions(job)
    examples = [
        {"input_ids": example.ids, "labels": [IGNORED] * example.first + example.ids[example.first :]}
        for example in answers(tokenizer, pairs, open_prompts(job.prompt, Path(job.start.path)))
    ]
    fitting = [example for example in examples if len(example["input_ids"]) <= job.sft.max_length]
    if not fitting:
        raise ValueError(f"every solution is longer than sft.max_length={job.sft.max_length} tokens; raise it")
    return fitting, counts | {"num_solutions": len(fitting), "num_left_out": len(examples) - len(fitting)}


def padded(examples: Sequence[Example]) -> dict[str, Tensor]:
    """One example a row, right-padded: input_ids, attention_mask, labels, each (examples, tokens)."""
    ids = [torch.tensor(example["input_ids"]) for example in examples]
    labels = [torch.tensor(example["labels"]) for example in examples]
    return {
        "input_ids": pad_sequence(ids, batch_first=True),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
        "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORED),
    }


def packed(examples: Sequence[Example]) -> dict[str, Any]:
    """Examples laid end to end in as many rows as cost least, each attending to itself alone.

    input_ids, labels, position_ids (rows, tokens); attention_mask (rows, 1, tokens, tokens), True where seen.
    The loss is that of `padded`, example by example.
    """
    layouts = [_rows(examples, count) for count in range(1, len(examples) + 1)]
    rows = min(layouts, key=lambda rows: len(rows) * _width(rows) * (1 + _width(rows) / LONG))
    width = _width(rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    labels = torch.full_like(ids, IGNORED)
    positions, owner = torch.zeros_like(ids), torch.zeros_like(ids)
    for number, row in enumerate(rows):
        at = 0
        for which, example in enumerate(row, start=1):
            end = at + len(example["input_ids"])
            ids[number, at:end] = torch.tensor(example["input_ids"])
            labels[number, at:end] = torch.tensor(example["labels"])
            positions[number, at:end] = torch.arange(end - at)
            owner[number, at:end] = which
            at = end
    causal = torch.ones(width, width, dtype=torch.bool).tril()
    seen = (owner[:, :, None] == owner[:, None, :]) & causal  # padding sees padding: no row of the softmax is empty
    return {"input_ids": ids, "labels": labels, "position_ids": positions, "attention_mask": seen[:, None]}


def _rows(examples: Sequence[Example], count: int) -> list[list[Example]]:
    """Examples in `count` rows of like length: the longest first, each into the row that is shortest."""
    rows: list[list[Example]] = [[] for _ in range(count)]
    for example in sorted(examples, key=lambda e: len(e["input_ids"]), reverse=True):
        min(rows, key=_length).append(example)
    return rows


def _width(rows: Sequence[Sequence[Example]]) -> int:
    return max(map(_length, rows))


def _length(row: Sequence[Example]) -> int:
    return sum(len(example["input_ids"]) for example in row)
