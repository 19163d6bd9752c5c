"""Phase `merge`: the sft checkpoint of an iteration, merged back, with its verification report."""

import shutil
from pathlib import Path
from typing import Any

from workbench import cluster
from workbench.analysis.index import measured_importance
from workbench.events import Emit
from workbench.jobs import MergeJob
from workbench.merging.files import merge_checkpoints
from workbench.merging.stream import open_models, recipe_for
from workbench.phases.process import main
from workbench.rundir import PhaseDir


def run(job: MergeJob, place: PhaseDir, emit: Emit) -> dict[str, Any]:
    """Merge into `checkpoint/`, anew where an earlier attempt was cut off."""
    shutil.rmtree(place.checkpoint, ignore_errors=True)
    sides = (Path(job.base.path), Path(job.start.path), Path(job.sft.path))
    if cluster.here():
        from workbench.cluster.weights import merged_parts
    else:
        from workbench.merging.stream import merged_parts
    return merge_checkpoints(
        *sides,
        {place.checkpoint: recipe_for(open_models(*sides), job.merge, job.seed, importance(job, place, emit))},
        threads=job.threads,
        parts=merged_parts,
        progress=lambda done, total: emit("progress", step=done, total=total, unit="tensors"),
    )[0]


def importance(job: MergeJob, place: PhaseDir, emit: Emit) -> list[float] | None:
    """Of the start's layers, measured where the merge asks for it; phase analyze finds it there."""
    if job.analyze is None:
        return None
    from workbench.phases.analyze import measure_sets  # torch, which other merges do without

    kept = PhaseDir(Path(job.importance), place.iteration, "analyze")
    kept.path.mkdir(parents=True, exist_ok=True)
    measure_sets(job.analyze, kept, emit)
    return measured_importance(kept.path)


if __name__ == "__main__":
    main(MergeJob, run)
