"""Phase `analyze`: importance of the layers for reasoning and for plain text, and how far the layers moved.

Importance is that of the checkpoint which the iteration started from: what its layers did before they
moved. Each set's is kept in a file of its own, so that a killed phase does not measure it again.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from workbench import cluster
from workbench.analysis.change import open_pair, squares_here, weight_change
from workbench.analysis.importance import measure, open_model
from workbench.analysis.index import SETS, Importance, indices
from workbench.events import Emit, read_lines
from workbench.examples import SHIPPED_TEXT, Example, answers, drawn, plain_texts, read_paragraphs
from workbench.jobs import AnalyzeJob
from workbench.phases.process import main
from workbench.prompting import open_prompts
from workbench.rundir import PhaseDir, read_json, write_json
from workbench.tasks import check_worked, load_questions


def run(job: AnalyzeJob, place: PhaseDir, emit: Emit) -> dict[str, Any]:
    """Importance for each set, weight change of each checkpoint, and the one held against the other."""
    began = time.time()
    torch.set_num_threads(job.threads)
    if cluster.here():
        from workbench.cluster.weights import all_squares
    else:
        all_squares = squares_here
    measure_sets(job, place, emit)
    found: dict[str, Any] = {"sets": [], "importance": [], "changes": [], "indices": []}
    for name in SETS:
        if (about := read_json(place.path / f"importance.{name}.json")) is not None:
            found["sets"].append({"text_set": name} | about)
            rows = Importance.load(place.path / f"importance.{name}.npz").rows()
            found["importance"] += [{"text_set": name, "checkpoint_id": job.start.checkpoint_id} | row for row in rows]
    sources = {job.start.path: place.path}
    if job.base_importance:
        sources[job.base.path] = Path(job.base_importance)
    for checkpoint in job.checkpoints:
        pairs: dict[str, list[dict[str, Any]]] = {}
        for word, other in {"base": job.base, "start": job.start}.items():
            if other.path not in pairs:
                sides = open_pair(Path(other.path), Path(checkpoint.path), trained_on=Path(job.start.path))
                pairs[other.path] = weight_change(*sides, threads=job.threads, all_squares=all_squares)
            about = {"checkpoint_id": checkpoint.checkpoint_id, "kind": checkpoint.kind, "compared_to": word}
            found["changes"] += [about | row for row in pairs[other.path]]
            if other.path in sources:
                found["indices"] += [about | row for row in indices(sources[other.path], pairs[other.path], job.seed)]
    return found | {"seconds": time.time() - began}


def measure_sets(job: AnalyzeJob, place: PhaseDir, emit: Emit) -> None:
    """Measure the importance of `start` for each set that has not been."""
    left = [name for name in SETS if not (place.path / f"importance.{name}.json").exists()]
    left = [name for name in left if name == "plain" or job.reasoning or job.solutions]
    if not left:
        return
    tokenizer = AutoTokenizer.from_pretrained(job.start.path, trust_remote_code=job.trust_remote_code)
    texts = {name: examples_of(name, job, tokenizer) for name in left}
    if cluster.here():
        from workbench.cluster.weights import measure_on_a_node as measure_texts
    else:
        measure_texts = measure_here
    measure_texts(job, texts, place.path, emit)


def measure_here(job: AnalyzeJob, texts: Mapping[str, tuple[str, list[Example]]], folder: Path, emit: Emit) -> None:
    """Importance for each set, in files of its own; the .json comes last."""
    model = open_model(Path(job.start.path), job.analyze.dtype, trust_remote_code=job.trust_remote_code)
    for number, (name, (origin, examples)) in enumerate(texts.items()):
        importance, about = measure(
            model,
            Path(job.start.path),
            examples,
            job.analyze,
            seed=job.seed,
            scratch=folder,
            progress=lambda done, total, before=number: emit(
                "progress", step=before * total + done, total=len(texts) * total, unit="layers"
            ),
        )
        importance.save(folder / f"importance.{name}.npz")
        write_json(folder / f"importance.{name}.json", {"origin": origin} | about)


def examples_of(name: str, job: AnalyzeJob, tokenizer: PreTrainedTokenizerBase) -> tuple[str, list[Example]]:
    """Where a set's texts come from, and the texts.

    Raises:
        ValueError: fewer than two that can be used.
    """
    settings = job.analyze
    if name == "plain":
        origin = job.text or SHIPPED_TEXT.name
        paragraphs = read_paragraphs(job.text or str(SHIPPED_TEXT))
        found = plain_texts(tokenizer, drawn(paragraphs, settings.num_examples, job.seed), settings.max_length)
    else:
        origin, pairs = reasoning_pairs(job)
        prompts = open_prompts(job.prompt, Path(job.start.path))
        fitting = [e for e in answers(tokenizer, pairs, prompts) if len(e.ids) <= settings.max_length]
        found = drawn(fitting, settings.num_examples, job.seed)
    if len(found) < 2:
        raise ValueError(
            f"{origin} gives {len(found)} usable examples, importance needs two; give longer texts, or raise "
            f"analyze.max_length ({settings.max_length} tokens)"
        )
    return origin, found


def reasoning_pairs(job: AnalyzeJob) -> tuple[str, list[tuple[str, str]]]:
    """Questions with worked solutions: the task's own, or where it has none those that this iteration kept.

    Raises:
        ValueError: neither is there.
    """
    if job.reasoning:
        # Of the task that a run trains on, only the train split: its test questions are for evaluation.
        split = "train" if job.solutions and not job.analyze.task else check_worked(job.reasoning)
        task = load_questions(job.reasoning, split)
        if pairs := [(q.text, q.solution) for q in task.questions if q.solution]:
            return f"{task.name}, {split}", pairs
    rows = [row for path in job.solutions for row in read_lines(Path(path))[0] if row["kept"]]
    if not rows:
        raise ValueError(
            f"task {job.reasoning.task if job.reasoning else ''} has no worked solutions and none were kept; "
            "set analyze.task to a task that has them (gsm8k, math, mathqa), or analyze.enabled to false"
        )
    return "kept solutions", [(row["question"], row["text"]) for row in rows]


if __name__ == "__main__":
    main(AnalyzeJob, run)
