"""Opening merge labs, and asking them for things; the work is done by `phases.sweep`."""

import time
from hashlib import sha256
from itertools import takewhile
from pathlib import Path
from typing import Any

from workbench import checkpoints
from workbench.analysis.index import measured_importance
from workbench.config import RunConfig
from workbench.core.methods import start_of
from workbench.events import append_lines
from workbench.jobs import TaskSource
from workbench.labdir import Export, LabConfig, LabDir, Point, Search, read_config, requests_left
from workbench.plan import checkpoint_path
from workbench.processes import is_alive, start_detached
from workbench.rundir import RunDir, find_run, read_json, write_json
from workbench.tasks import tuning_split


def open_lab(root: Path, run_id: str, iteration: int) -> LabDir:
    """The lab of a run's iteration, set up where it is new.

    Raises:
        ValueError: no such run, or its iteration has no sft checkpoint yet.
    """
    run = find_run(root, run_id)
    written = read_json(run.config)
    config = RunConfig.model_validate(written["config"])
    sft = checkpoint_path(run, iteration, "sft", "")
    if not (sft / "config.json").exists():
        raise ValueError(f"iteration {iteration} of {run_id} has no fine-tuned checkpoint yet")
    base = written["base"]["path"]
    start = checkpoint_path(run, *start_of(config.method, iteration), base)
    return _set_up(
        LabDir(root / "labs" / f"{run_id}-i{iteration}"),
        LabConfig(
            base=base,
            start=config.start if iteration == 1 and config.start else str(start),
            sft=str(sft),
            id_task=TaskSource(task=config.train_task, datasets=config.datasets),
            ood_tasks=tuple(TaskSource(task=task, datasets=config.datasets) for task in config.eval_tasks),
            run_id=run_id,
            iteration=iteration,
            seed=config.seed,
            num_questions=config.num_questions,
            sample=config.sample,
            prompt=config.prompt,
            max_new_tokens=config.evaluate.max_new_tokens,
            engine=config.engine,
            threads=config.threads,
            trust_remote_code=config.trust_remote_code,
            ray=config.ray if config.on == "ray" and not config.ray.storage else None,  # a point reads the tasks' files
        ),
    )


def open_directories(root: Path, config: LabConfig) -> LabDir:
    """The lab of three model directories, set up where it is new.

    Raises:
        ValueError: a directory that holds no usable model.
    """
    for path in {config.base, config.start}:
        if checkpoints.check_model(path) is None:
            raise ValueError(f"{path} is no local model directory; merging needs the files")
        checkpoints.check_code(path, config.trust_remote_code)
    absolute = {side: checkpoints.absolute_model(getattr(config, side)) for side in ("base", "start", "sft")}
    config = config.model_copy(update=absolute)
    # What came later is left out where it is off: names stay what they were.
    new = {name for name in ("trust_remote_code", "ray") if not getattr(config, name)}
    digest = sha256(config.model_dump_json(exclude=new).encode()).hexdigest()
    return _set_up(LabDir(root / "labs" / f"lab-{digest[:10]}"), config)


def iterations(run: RunDir) -> list[int]:
    """The iterations of a run that have a fine-tuned checkpoint."""
    return [place.iteration for place in run.phases() if place.phase == "sft" and place.result.exists()]


def _set_up(lab: LabDir, config: LabConfig) -> LabDir:
    if not lab.config.exists():
        write_json(lab.config, config.model_dump(mode="json") | {"created_at": time.time()})
    if not lab.moments.exists():
        wake(lab)
    return lab


def tuning_tasks(config: LabConfig) -> tuple[list[tuple[str, TaskSource, str]], list[str]]:
    """(domain, task, split) of each task that settings can be chosen on, and a sentence for each that cannot."""
    sources = [("ID", config.id_task)] if config.id_task else []
    usable, remarks = [], []
    for domain, source in [*sources, *(("OOD", task) for task in config.ood_tasks)]:
        try:
            usable.append((domain, source, tuning_split(source)))
        except ValueError as error:
            remarks.append(str(error))
    return usable, remarks


def layer_importance(lab: LabDir) -> list[float] | None:
    """The importance of the start's layers for reasoning, once the run's phase analyze has measured it."""
    config = read_config(lab)
    if config.run_id is None:
        return None
    place = RunDir(lab.path.parents[1] / "runs" / config.run_id).phase(config.iteration, "analyze")
    return measured_importance(place.path)


def ask(lab: LabDir, *requests: Point | Search | Export) -> None:
    """Ask the lab's process for something, and see that there is one."""
    now = time.time()
    append_lines(lab.requests, [request.model_dump(mode="json") | {"asked_at": now} for request in requests])
    wake(lab)


def cancel(lab: LabDir) -> None:
    """Take back everything that is not done; answers that are there are kept."""
    append_lines(lab.requests, [{"kind": "cancel"}])


def wake(lab: LabDir) -> None:
    """Start the lab's process where there is none."""
    if not is_alive(lab):
        start_detached("workbench.phases.sweep", lab)


def leading_points(lab: LabDir) -> list[tuple[int, Point]]:
    """What is left of points, up to the first request of another kind."""
    return list(takewhile(lambda left: left[1].kind == "point", requests_left(lab)))


def observed(lab: LabDir) -> dict[str, Any]:
    """What the lab is doing: `doing` (a sentence, or None), done and total answers, `error`."""
    status = read_json(lab.status) or {}
    if status.get("doing") and not is_alive(lab):
        return status | {
            "doing": None,
            "error": "The lab's process is gone (killed, or out of memory); ask again to go on.",
        }
    return {"doing": None, "done": 0, "total": 0, "error": None} | status
