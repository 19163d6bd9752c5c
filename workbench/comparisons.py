"""Analysing any two checkpoints, outside of a run: asking for it, and what came out.

<home>/analyses/<id>/iteration_0/analyze/   laid out like a phase of a run, with process.json beside
"""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from filelock import FileLock
from pandas import DataFrame

from workbench import checkpoints
from workbench.config import AnalyzeConfig
from workbench.events import read_lines
from workbench.examples import check_text
from workbench.ingest import TABLES, analysis_rows
from workbench.jobs import AnalyzeJob, Checkpoint, TaskSource
from workbench.processes import is_alive, start_detached
from workbench.queueing import spare_threads
from workbench.rundir import ERROR, PhaseDir, read_json, write_json
from workbench.tasks import check_worked


@dataclass(frozen=True)
class Comparison(PhaseDir):
    """The directory of one analysis."""

    @property
    def process(self) -> Path:
        return self.path / "process.json"

    @property
    def comparison_id(self) -> str:
        return self.path.parents[1].name


def analysis_job(
    model: str,
    other: str | None,
    task: TaskSource | None,
    text: str | None,
    settings: AnalyzeConfig,
    seed: int = 0,
    trust_remote_code: bool = False,
) -> AnalyzeJob:
    """The importance of a model's layers, and how far another checkpoint's lie from it.

    Raises:
        ValueError: a model directory, task or text that cannot be used.
    """
    for path in filter(None, [model, other]):
        if not is_adapter_directory(path) and checkpoints.check_model(path) is None:
            raise ValueError(f"{path} is no local model directory; give one with config.json and *.safetensors")
    checkpoints.check_code(model, trust_remote_code)
    if task is not None:
        check_worked(task)
    if text is not None:
        check_text(text)
    base = Checkpoint(checkpoint_id="base", kind="base", path=checkpoints.absolute_model(model))
    others = [Checkpoint(checkpoint_id="other", kind="other", path=str(Path(other).absolute()))] if other else []
    return AnalyzeJob(
        base=base, start=base, checkpoints=tuple(others), reasoning=task, text=text, analyze=settings, seed=seed,
        threads=spare_threads(), trust_remote_code=trust_remote_code,
    )  # fmt: skip


def is_adapter_directory(path: str) -> bool:
    """Whether a path holds a LoRA adapter, which counts as folded into the model it is compared to."""
    return (Path(path) / "adapter_config.json").is_file()


def claim(place: PhaseDir, job: AnalyzeJob) -> None:
    """Write down whose importance a directory keeps; what is there already is continued.

    Raises:
        ValueError: another model's, or with other settings.
    """
    asked, kept = _identity(job), read_json(place.job)
    if kept is None and not any(place.path.glob("importance.*")):
        write_json(place.job, job.model_dump(mode="json"))
    elif kept is None or _identity(AnalyzeJob.model_validate(kept)) != asked:
        whose = kept["base"]["path"] if kept else "a model that is not named there"
        raise ValueError(
            f"{place.path} holds the importance of {whose} with other settings than were asked for; give another --out"
        )


def _identity(job: AnalyzeJob) -> dict[str, Any]:
    """What the result depends on."""
    return job.model_dump(mode="json", exclude={"threads"})


def ask(root: Path, job: AnalyzeJob) -> Comparison:
    """Start an analysis in the background; the same question is asked once."""
    new = None if job.trust_remote_code else {"trust_remote_code"}  # it came later, and names stay what they were
    name = sha256(job.model_dump_json(exclude=new).encode()).hexdigest()[:12]
    place = find(root, name)
    if place.result.exists():
        return place
    place.path.mkdir(parents=True, exist_ok=True)
    with FileLock(place.path / ".ask.lock"):
        if not is_alive(place):
            write_json(place.job, job.model_dump(mode="json"))
            start_detached("workbench.phases.compare", place)
    return place


def find(root: Path, name: str) -> Comparison:
    """An analysis by its id; it need not exist."""
    return Comparison(root / "analyses" / name / "iteration_0" / "analyze", 0, "analyze")


def all_comparisons(root: Path) -> list[Comparison]:
    """Every analysis of a home, newest first."""
    jobs = (root / "analyses").glob("*/iteration_0/analyze/job.json")
    return [find(root, job.parents[2].name) for job in sorted(jobs, key=lambda job: -job.stat().st_mtime)]


def labels(places: Sequence[Comparison]) -> dict[str, str]:
    """By id: which checkpoints, in a few words; with the settings, and the id's end, where that tells them apart."""
    jobs = {place.comparison_id: AnalyzeJob.model_validate(read_json(place.job)) for place in places}
    names = {key: _names(job) for key, job in jobs.items()}
    for tell in (_settings, lambda job: None):
        counts = Counter(names.values())
        for key, job in jobs.items():
            if counts[names[key]] > 1:
                names[key] += f" · {tell(job) or key[-4:]}"
    return names


def _names(job: AnalyzeJob) -> str:
    paths = [checkpoint.path for checkpoint in (job.base, *job.checkpoints)]
    return " → ".join("/".join(Path(path).parts[-2:]) for path in paths)


def _settings(job: AnalyzeJob) -> str:
    texts = [Path(text).name for text in (job.reasoning.task if job.reasoning else None, job.text) if text]
    changed = [f"{name} {value}" for name, value in job.analyze.model_dump(exclude_defaults=True).items()]
    return " · ".join([*texts, *changed])


def observed(place: Comparison) -> dict[str, Any]:
    """How an analysis stands: `done`, `text` (a sentence), `share` (of the layers), `error`."""
    if place.result.exists():
        return {"done": True, "text": "", "share": 1.0, "error": None}
    if not is_alive(place):
        lines = place.log.read_text(errors="replace").splitlines() if place.log.exists() else []
        known = lines[-1].removeprefix(ERROR) if lines and lines[-1].startswith(ERROR) else None
        return {"done": False, "text": "", "share": 0.0,
                "error": known or f"The analysis ended without a result; its log: {place.log}"}  # fmt: skip
    events, _ = read_lines(place.events)
    progress = [event for event in events if event["name"] == "progress"]
    waits = time.strftime("%H:%M:%S", time.localtime(place.job.stat().st_mtime))
    if not progress:
        return {"done": False, "text": f"Asked for at {waits}; reading, or waiting for a run.", "share": 0.0,
                "error": None}  # fmt: skip
    last = progress[-1]
    text = f"{last['step']} of {last['total']} layers"
    return {"done": False, "text": text, "share": last["step"] / last["total"], "error": None}


def frames(place: Comparison) -> dict[str, DataFrame]:
    """What a finished analysis found, as the store's tables importance, weight_change and superficiality.

    A table of which nothing was asked for is empty, with its columns.
    """
    rows = analysis_rows(read_json(place.result)["summary"])
    keys = {"run_id": place.comparison_id, "iteration": 1}
    return {
        table: DataFrame([keys | row for row in found], columns=list(TABLES[table])) for table, found in rows.items()
    }
