"""Phase `merge`: the sft checkpoint of an iteration, merged back, with its verification report."""

import shutil
from pathlib import Path
from typing import Any

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
    return merge_checkpoints(
        *sides,
        {place.checkpoint: recipe_for(open_models(*sides), job.merge, job.seed)},
        threads=job.threads,
        progress=lambda done, total: emit("progress", step=done, total=total, unit="tensors"),
    )[0]


if __name__ == "__main__":
    main(MergeJob, run)
