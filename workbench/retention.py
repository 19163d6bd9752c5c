"""What of a run's files can be made again, who still needs them, and letting go of the rest.

Merged weights go first: `merge.json` beside them says how to make them again, byte for byte. Then optimizer states
and scratch files that attempts left behind. Whoever needs removed weights makes them again (`merging.files.restore`).
Imports no torch.
"""

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from workbench.checkpoints import MERGE_REPORT, is_removed, weights_lock
from workbench.comparisons import Comparison, all_comparisons
from workbench.config import RunConfig
from workbench.jobs import AnalyzeJob, model_paths
from workbench.labdir import LabDir, all_labs, read_config, requests_left
from workbench.launch import ACTIVE, observed_status
from workbench.plan import plan
from workbench.processes import is_alive, processes_of
from workbench.rundir import PhaseDir, RunDir, all_runs, last_complete, read_json

WEIGHTS = "model.safetensors"
SCRATCH = (".*.tmp", ".*.tmp.npz", ".*.again", "tmp*")
"""What writers leave in a phase's directory when they are killed."""
Kind = Literal["merged weights", "optimizer state", "scratch"]


@dataclass(frozen=True)
class Spare:
    """Something that can go: a file or directory of a run."""

    path: Path
    kind: Kind
    run_id: str
    why: str
    """How it is made again, or why nobody misses it."""


@dataclass(frozen=True)
class Kept:
    """Something that could go but for somebody."""

    path: Path
    run_id: str
    why: str


def let_go(run: RunDir) -> None:
    """Remove the merged weights of a run that nobody needs any more."""
    if len(merges(run)) > 1:
        root = run.path.parents[1]
        for spare in spare_merges(run, needed(root))[0]:
            remove(root, spare)


def spares(root: Path, *, states: bool = False) -> tuple[list[Spare], list[Kept]]:
    """What can go in a home, and what must stay though it could be made again.

    states: also the optimizer states from which stopped and failed runs would go on; they then train again.
    """
    users, found, kept = needed(root), [], []
    for run in all_runs(root):
        going, staying = spare_merges(run, users)
        found += going
        kept += staying
        status, _ = observed_status(run)
        if status in ACTIVE or (status != "done" and processes_of(run)):
            continue
        going, staying = _leftovers(run, status, states)
        found += going
        kept += staying
    return found, kept


def remove(root: Path, spare: Spare) -> bool:
    """Let one go; False where somebody has come to need it meanwhile."""
    if spare.kind != "merged weights":
        if spare.path.is_dir():
            shutil.rmtree(spare.path, ignore_errors=True)
        else:
            spare.path.unlink(missing_ok=True)
        return True
    with weights_lock(spare.path.parent):
        if os.path.realpath(spare.path.parent) in needed(root):
            return False
        spare.path.unlink(missing_ok=True)
        return True


def merges(run: RunDir) -> list[PhaseDir]:
    """The merges of a run whose weights are there, oldest first."""
    done = [place for place in run.phases() if place.phase == "merge" and place.result.exists()]
    return [place for place in done if (place.checkpoint / WEIGHTS).is_file()]


def spare_merges(run: RunDir, users: Mapping[str, str]) -> tuple[list[Spare], list[Kept]]:
    """Merged weights of a run that can go, and those that cannot. The last merge is what the run made: it stays."""
    found, kept = [], []
    last = max((place.iteration for place in run.phases() if place.phase == "merge"), default=0)
    for place in merges(run):
        path = place.checkpoint / WEIGHTS
        if place.iteration == last:
            continue
        if user := users.get(os.path.realpath(place.checkpoint)):
            kept.append(Kept(path, run.run_id, f"{user} needs it"))
        elif problem := unlike(place.checkpoint):
            kept.append(Kept(path, run.run_id, f"it might not come out the same: {problem}"))
        else:
            found.append(
                Spare(
                    path, "merged weights", run.run_id, f"made again when needed, or by: workbench remake {path.parent}"
                )
            )
    return found, kept


def unlike(merge: Path) -> str | None:
    """Why a merge could not be made again the same, or None: its inputs and itself are as when it was written."""
    report, weights = read_json(merge / MERGE_REPORT), merge / WEIGHTS
    if report is None or "sha256" not in report:
        return f"{merge} has no {MERGE_REPORT}"
    written = (merge / MERGE_REPORT).stat().st_mtime
    if weights.is_symlink() or weights.stat().st_size != report["bytes"] or weights.stat().st_mtime > written:
        return f"{weights} is not as the merge wrote it"
    for side in ("base", "start", "sft"):
        path = Path(report[side])
        if is_removed(path) and Path(json.loads((path / MERGE_REPORT).read_text())["sft"]).is_dir():
            continue
        files = list(path.glob("*.safetensors"))
        if not files:
            return f"its {side} {path} is gone"
        if max(file.stat().st_mtime for file in files) > written:
            return f"its {side} {path} has changed since"
    return None


def needed(root: Path) -> dict[str, str]:
    """By real path, the model directories that runs, labs and analyses are still to read, and who."""
    found: dict[str, str] = {}
    for who, paths in _readers(root):
        with suppress(ValueError, KeyError, TypeError, OSError):  # what cannot be read, or has just gone, reads nothing
            found |= {os.path.realpath(path): who for path in paths()}
    return found


def _readers(root: Path) -> Iterator[tuple[str, Callable[[], Iterable[str]]]]:
    """Everybody who may read models, and what tells which."""
    for run in all_runs(root):
        yield f"run {run.run_id}", partial(_still_read, run)
    for lab in all_labs(root):
        yield f"lab {lab.lab_id}", partial(_lab_reads, lab)
    for place in all_comparisons(root):
        yield f"analysis {place.comparison_id}", partial(_analysis_reads, place)


def _lab_reads(lab: LabDir) -> Iterable[str]:
    config = read_config(lab)
    return (config.base, config.start, config.sft) if is_alive(lab) or requests_left(lab) else ()


def _analysis_reads(place: Comparison) -> Iterable[str]:
    works = not place.result.exists() and is_alive(place)
    return model_paths(AnalyzeJob.model_validate(read_json(place.job))) if works else ()


def _still_read(run: RunDir) -> set[str]:
    """The model directories that a run reads in the phases which it has still to do."""
    if (read_json(run.status) or {}).get("status") == "done":
        return set()
    written = read_json(run.config)
    config = RunConfig.model_validate(written["config"])
    base = written.get("base", {}).get("path", config.model)
    found = {path for path in (config.model, config.start, config.teacher.model) if path}
    for place, job in plan(run, config, base, 1):
        if not place.result.exists():
            found |= model_paths(job)
    return found


def _leftovers(run: RunDir, status: str, states: bool) -> tuple[list[Spare], list[Kept]]:
    """Optimizer states and scratch files of a run at which nobody works."""
    found, kept = [], []
    for place in run.phases():
        trainer = place.path / "trainer"
        newest = last_complete(trainer) if not place.result.exists() else None
        for path in sorted(trainer.glob("checkpoint-*")):
            if path != newest:
                why = "the phase is done" if place.result.exists() else "cut off while it was written; nothing reads it"
                found.append(Spare(path, "optimizer state", run.run_id, why))
            elif states:
                why = f"the run is {status}; workbench resume trains this phase from its beginning, to the same result"
                found.append(Spare(path, "optimizer state", run.run_id, why))
            else:
                kept.append(Kept(path, run.run_id, "workbench resume goes on from it; it goes with --states"))
        for folder in (place.path, trainer):
            for path in sorted(path for pattern in SCRATCH for path in folder.glob(pattern)):
                found.append(Spare(path, "scratch", run.run_id, "left behind by an attempt that was cut off"))
    return found, kept


def freed(paths: Iterable[Path]) -> int:
    """Bytes on disk that come free when these go. A file that has a hard link elsewhere frees nothing."""
    links: Counter[tuple[int, int]] = Counter()
    about: dict[tuple[int, int], os.stat_result] = {}
    for path in paths:
        for file in [path, *path.rglob("*")] if path.is_dir() else [path]:
            found = file.lstat()
            if not file.is_dir() or file.is_symlink():
                links[found.st_dev, found.st_ino] += 1
            about[found.st_dev, found.st_ino] = found
    return sum(
        found.st_blocks * 512 for key, found in about.items() if key not in links or links[key] == found.st_nlink
    )
