# ruff: noqa: T201
"""`kill -9` at random moments of small pocket runs, and whether it made any difference.

    python benchmarks/faults.py --points 50

Each run is interrupted a few times (--each) and then finished: a process is killed (its runner, the process of its
phase, the home's supervisor, the app with an open page), the run is resumed where that is needed, and at the end its
accuracies, solutions and answers are held against those of an uninterrupted run: equal in every value, nothing
sampled twice, no torn line, and a store made anew from the files the same as the one that was written along the way.
"""

import argparse
import asyncio
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from pandas import DataFrame
from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from tornado.httpclient import HTTPRequest
from tornado.websocket import websocket_connect

from workbench import launch, queueing, store
from workbench.config import RunConfig
from workbench.ingest import TABLES
from workbench.processes import end_group, is_alive
from workbench.queueing import QueueDir
from workbench.rundir import RunDir, find_run, read_json, store_path
from workbench.settings import build_config, load_settings

ROOT = Path(__file__).parents[1]
TARGETS = ("runner", "phase", "supervisor", "app")
SETTINGS = {
    "num_questions": 24, "eval_questions": 16, "iterations": 1, "threads": 1, "engine.batch_size": 24,
    "sample.max_new_tokens": 40, "evaluate.max_new_tokens": 40, "evaluate.num_samples": 4,
    "evaluate.sampled_questions": 4, "sft.save_every_steps": 2, "sft.batch_size": 4, "analyze.num_examples": 16,
}  # fmt: skip
WAIT_S = 900.0
"""For anything that should take seconds; a machine may be busy with other things."""


@dataclass
class Point:
    """One kill."""

    target: str
    run_id: str
    at_s: float
    """Seconds after the run's start, or its last resume."""
    phase: str
    how: str
    """How it went on."""
    problems: tuple[str, ...] = ()
    """Of the finished run; empty where nothing is different."""


class App:
    """A real `streamlit run`, with the live page open in a session."""

    def __init__(self, home: Path) -> None:
        self.home, self.exceptions, self.drawn = home, [], 0
        self.start()

    def start(self) -> None:
        """Start the server, wait until it answers, and open the page."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        with (self.home / "app.log").open("ab") as log:
            command = [sys.executable, "-m", "streamlit", "run", "workbench/app.py", "--server.port", str(self.port)]
            env = os.environ | {"WORKBENCH_HOME": str(self.home)}
            self.process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log)
        wait_until(self._answers)
        threading.Thread(target=lambda: asyncio.run(self._visit(self.process)), daemon=True).start()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def _answers(self) -> bool:
        with suppress(OSError):
            return urllib.request.urlopen(f"http://127.0.0.1:{self.port}/_stcore/health", timeout=1).status == 200
        return False

    async def _visit(self, server: subprocess.Popen) -> None:
        """Open the live page as a browser does, again and again, until the server is gone."""
        headers = {"Sec-WebSocket-Protocol": "streamlit", "Origin": f"http://127.0.0.1:{self.port}"}
        with suppress(OSError):
            socket_ = await websocket_connect(
                HTTPRequest(f"ws://127.0.0.1:{self.port}/_stcore/stream", headers=headers)
            )
            while server.poll() is None:
                message = BackMsg()
                message.rerun_script.page_name = "live"
                await socket_.write_message(message.SerializeToString(), binary=True)
                while (data := await socket_.read_message()) is not None:
                    answer = ForwardMsg.FromString(data)
                    if answer.delta.new_element.HasField("exception"):
                        self.exceptions.append(answer.delta.new_element.exception.message)
                    if answer.WhichOneof("type") == "script_finished":
                        self.drawn += 1
                        break
                if data is None:
                    return
                await asyncio.sleep(2)


def wait_until(condition, timeout_s: float = WAIT_S) -> float:
    """Wait for something to become true; the seconds that it took.

    Raises:
        TimeoutError: it did not.
    """
    since = time.monotonic()
    while not condition():
        if time.monotonic() - since > timeout_s:
            raise TimeoutError(f"waited {timeout_s:g} s in vain")
        time.sleep(0.05)
    return time.monotonic() - since


def finish(home: Path, run: RunDir) -> None:
    """Wait until a run is done.

    Raises:
        RuntimeError: it ended otherwise.
    """
    wait_until(lambda: launch.observed_status(run)[0] in launch.ENDED and not is_alive(run))
    status, error = launch.observed_status(run)
    if status != "done":
        raise RuntimeError(f"{run.run_id} is {status}: {error}")
    wait_until(lambda: queueing.ticket_of(home, run.run_id) is None)


def tables_of(run: RunDir) -> dict[str, DataFrame]:
    """What a run measured, without its name and times: every eval, solution and answer."""
    db, mine = store_path(run.path.parents[1]), f"replace(checkpoint_id, '{run.run_id}', '') AS checkpoint"
    asked = {
        "evals": f"SELECT {mine}, * EXCLUDE (run_id, checkpoint_id) FROM evals",
        "solutions": "SELECT * EXCLUDE (run_id) FROM solutions",
        "outcomes": f"SELECT {mine}, * EXCLUDE (run_id, checkpoint_id) FROM outcomes",
    }
    frames = {
        name: store.query(db, f"{sql} WHERE run_id = ? ORDER BY ALL", [run.run_id]) for name, sql in asked.items()
    }
    return {
        name: frame.drop(columns=[c for c in ("ts", "evaluated_at") if c in frame]) for name, frame in frames.items()
    }


def problems_of(run: RunDir, whole: dict[str, DataFrame]) -> list[str]:
    """What differs from the uninterrupted run, was done twice or torn; nothing, if all is well."""
    mine = tables_of(run)
    found = [f"{name} differ" for name in whole if not mine[name].equals(whole[name])]
    keys = {"solutions.jsonl": ("question_id", "sample"),
            "outcomes.jsonl": ("checkpoint_id", "task", "question_id", "sample")}  # fmt: skip
    for file in sorted(run.path.rglob("*.jsonl")):
        text = file.read_text(encoding="utf-8")
        rows = []
        for line in text.splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:
                found.append(f"a torn line in {file.relative_to(run.path)}")
        if not text.endswith("\n"):
            found.append(f"{file.relative_to(run.path)} ends torn")
        if key := keys.get(file.name):
            often = Counter(tuple(row[name] for name in key) for row in rows)
            found += [f"{name} {count} times in {file.name}" for name, count in often.items() if count > 1]
    return found + rebuilt_otherwise(run.path.parents[1])


def rebuilt_otherwise(home: Path) -> list[str]:
    """Tables of the store that come out differently when it is made anew from the files."""
    db = store_path(home)
    asked = {table: f"SELECT * FROM {table} ORDER BY ALL" for table in TABLES}
    before = {table: store.query(db, sql) for table, sql in asked.items()}
    store.rebuild(home)
    return [
        f"{table} differs after a rebuild"
        for table, sql in asked.items()
        if not store.query(db, sql).equals(before[table])
    ]


def victim(target: str, home: Path, run: RunDir, app: App | None) -> int | None:
    """The pid to kill, where it is there."""
    if target == "app":
        return app.process.pid
    if target == "supervisor":
        place = QueueDir.of(home)
        return read_json(place.process)["pid"] if is_alive(place) else None
    if not is_alive(run):
        return None
    runner = read_json(run.process)["pid"]
    if target == "runner":
        return runner
    phase = read_json(run.status)["phase"]
    module = f"workbench.phases.{'warm' if phase in ('sample', 'evaluate') else phase}"
    with suppress(psutil.Error):  # the process that works; an engine that rests beside it is none
        return next((child.pid for child in psutil.Process(runner).children() if module in child.cmdline()), None)
    return None


def strike(target: str, home: Path, run: RunDir, since: float, app: App | None, chance: random.Random) -> Point | None:
    """Kill the target as soon as it is there, and see that the run goes on; None where the run was over before."""
    while (pid := victim(target, home, run, app)) is None:
        if launch.observed_status(run)[0] in launch.ENDED:
            return None
        time.sleep(0.02)
    if launch.observed_status(run)[0] in launch.ENDED:
        return None
    status = read_json(run.status)
    phase = f"{status['phase']} {status['iteration']}" if status["phase"] else status["status"]
    point = Point(target, run.run_id, time.monotonic() - since, phase, "")
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    if target == "app":
        app.process.wait()
        app.start()
        point.how = "the run went on by itself, the app was started again"
    elif target == "supervisor":
        place = QueueDir.of(home)
        seconds = wait_until(
            lambda: (
                (is_alive(place) and read_json(place.process)["pid"] != pid)
                or launch.observed_status(run)[0] in launch.ENDED
            )
        )
        point.how = f"the run went on by itself, the next supervisor after {seconds:.1f} s"
    else:
        wait_until(lambda: launch.observed_status(run)[0] in launch.ENDED)
        if launch.observed_status(run)[0] == "done":
            point.how = "the run was done all the same"
            return point
        at_once = chance.random() < 0.5  # else once the supervisor has tidied up
        if not at_once:
            wait_until(lambda: queueing.ticket_of(home, run.run_id) is None and not is_alive(run))
        wait_until(lambda: not is_alive(run))
        launch.resume(home, run.run_id)
        point.how = f"resumed {'at once' if at_once else 'when the supervisor had noted it'}"
    return point


def interrupted(
    home: Path, config: RunConfig, whole: dict[str, DataFrame], targets: list[str], usual_s: float,
    chance: random.Random, app: App | None,
) -> list[Point]:  # fmt: skip
    """One run, with a kill of each target at a random moment of its usual time; the points that came to pass."""
    run = find_run(home, launch.launch(config, home))
    wait_until(lambda: launch.observed_status(run)[0] != "queued")
    points = []
    for target in targets:
        since = time.monotonic()
        time.sleep(chance.uniform(0.0, usual_s / len(targets)))
        if point := strike(target, home, run, since, app, chance):
            points.append(point)
            wait_until(lambda: launch.observed_status(run)[0] != "queued")
    finish(home, run)
    problems = tuple(problems_of(run, whole))
    for point in points:
        point.problems = problems
    for weights in run.path.rglob("*.safetensors"):
        weights.unlink()
    return points


def uninterrupted(home: Path, config: RunConfig) -> tuple[dict[str, DataFrame], float]:
    """What an uninterrupted run comes to, and the seconds that it takes."""
    since = time.monotonic()
    run = find_run(home, launch.launch(config, home))
    finish(home, run)
    return tables_of(run), time.monotonic() - since


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=50)
    parser.add_argument("--each", type=int, default=6, help="kills in one run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no further run after these")
    options = parser.parse_args()
    chance, points, began = random.Random(options.seed), [], time.monotonic()
    home = Path(tempfile.mkdtemp(prefix="faults-"))
    os.environ["WORKBENCH_HOME"] = str(home)
    app = App(home)
    try:
        config = build_config(load_settings("pocket"), SETTINGS)
        whole, usual_s = uninterrupted(home, config)
        print(f"uninterrupted: {usual_s:.0f} s; seed {options.seed}", flush=True)
        runs, deck = 0, []
        while len(points) < options.points and time.monotonic() - began < 60 * options.minutes:
            while len(deck) < options.each:  # each kind as often as any other, in random order
                deck += chance.sample(TARGETS, len(TARGETS))
            targets, deck = deck[: options.each], deck[options.each :]
            found = interrupted(home, config, whole, targets, usual_s, chance, app)
            runs += 1
            for point in found:
                points.append(point)
                word = "; ".join(point.problems) or "equal"
                print(f"{len(points):3}  run {runs:2}  {point.target:10} {point.at_s:6.1f} s  {point.phase:12} "
                      f"{point.how}: {word}", flush=True)  # fmt: skip
        summary(points, runs, app)
    finally:
        app.kill()
        end_group(QueueDir.of(home), 5)
        for path in (home / "runs").glob("*"):
            end_group(RunDir(path), 0)
        shutil.rmtree(home, ignore_errors=True)
    return any(point.problems for point in points)


def summary(points: list[Point], runs: int, app: App) -> None:
    """By what was killed: how often, in which phases, how many equal."""
    print("\n| killed | points | in the phases | equal |\n|---|---|---|---|")
    for target in TARGETS:
        mine = [point for point in points if point.target == target]
        phases = ", ".join(f"{name} {n}" for name, n in Counter(p.phase.split()[0] for p in mine).most_common())
        print(f"| {target} | {len(mine)} | {phases} | {sum(not point.problems for point in mine)} |")
    equal = sum(not point.problems for point in points)
    print(f"\n{len(points)} points in {runs} runs, {equal} equal; the live page was drawn {app.drawn} times, "
          f"with {len(app.exceptions)} exceptions {sorted(set(app.exceptions))[:3]}")  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
