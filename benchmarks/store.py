# ruff: noqa: T201
"""The store under load and at scale.

    python benchmarks/store.py load                              # 4 runs writing, 8 readers, 60 s: the waits
    python benchmarks/store.py scale                             # 1,000 runs: the pages' first paint and refresh
    python benchmarks/store.py scale --trackio VENV/bin/python   # and the same metrics in trackio

A page is timed as Streamlit's server runs its script, without the browser, in a process that has imported its
libraries; "refresh" runs the whole page again. trackio is to be installed in an environment of its own.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import psutil

from workbench import store, storefile
from workbench.config import RunConfig
from workbench.events import append_lines
from workbench.processes import record_process
from workbench.recording import prepare
from workbench.rundir import RunDir, all_runs, read_json, store_path, write_json
from workbench.settings import build_config, load_settings

HERE = Path(__file__)
NAMES = ["loss", "learning_rate", "grad_norm", "tokens_per_s"]
TASKS = ["pocket_steps", "pocket_words", "pocket_choice", "pocket_compare"]
RUNNING = 10
WRITE_EVERY_S = READ_EVERY_S = 1.0
"""As a runner does; twice as often as a live page."""
Report = dict[str, Any]


def make_run(home: Path, number: int, status: str, config: RunConfig) -> RunDir:
    """A run's directory with nothing done yet."""
    run = RunDir(home / "runs" / f"20260101-{number:06d}-imm-s{number % 5}")
    began = 1_767_225_600 + 600 * number
    written = {"run_id": run.run_id, "created_at": began, "config": config.model_dump(mode="json"), "versions": {}}
    write_json(run.config, written)
    write_json(run.status, {"status": status, "since": began, "iteration": 1, "phase": "sft", "error": None})
    return run


def repeat(seconds: float, every_s: float, action: Callable[[], object]) -> Report:
    """Do something again and again for a while; the seconds that each time took, and how often it was put off."""
    spent, put_off, until = [], [], time.monotonic() + seconds
    while (began := time.monotonic()) < until:
        try:
            action()
        except store.StoreBusy as busy:  # a runner then tries again a second later, a page says so meanwhile
            put_off.append(str(busy))
        spent.append(time.monotonic() - began)
        time.sleep(max(0.0, every_s - spent[-1]))
    return {"calls": spent, "put_off": put_off, "waits": list(storefile.WAITED)}


def write(home: Path, number: int, seconds: float) -> Report:
    """A runner's part of the load: a phase that reports 100 losses a second."""
    run = make_run(home, number, "running", build_config(load_settings("pocket")))
    record_process(run, os.getpid())
    place, offsets, step = run.phase(1, "sft"), {}, 0
    write_json(place.job, {})

    def record() -> None:
        nonlocal offsets, step
        now = {"ts": time.time()}
        rows = [now | {"name": "loss", "value": 1 / (n + 1), "step": n} for n in range(step, step + 100)]
        step += 100
        append_lines(place.events, [*rows, now | {"name": "progress", "value": None, "step": step, "total": 10**6}])
        offsets = store.ingest(store_path(home), run, offsets)

    report = repeat(seconds, WRITE_EVERY_S, record)
    write_json(run.status, read_json(run.status) | {"status": "done"})
    record()
    return {"run_id": run.run_id, "points": step} | report


def read(home: Path, number: int, seconds: float) -> Report:
    """A reader's part of the load: what the pages Runs and Live ask for."""
    db = store_path(home)

    def look() -> None:
        with store.one_look(db):
            runs = store.runs_frame(db)
            if len(runs):
                run_id = runs["run_id"].iloc[number % min(4, len(runs))]
                for reading in (store.run_frame, store.phases_frame, store.evals_frame, store.kept_frame):
                    reading(db, run_id)
                store.metrics_frame(db, run_id, "loss")

    return repeat(seconds, READ_EVERY_S, look)


def load(home: Path, seconds: float, writers: int = 4, readers: int = 8) -> dict[str, list[Report]]:
    """Writers and readers at once, a process each; what each of them reports.

    Raises:
        RuntimeError: one of them met an error, or said anything else.
    """
    parts = [("write", 900_000 + n) for n in range(writers)] + [("read", n) for n in range(readers)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [
        subprocess.Popen([sys.executable, HERE, part, str(home), str(number), str(seconds)], **pipes)
        for part, number in parts
    ]
    ended = [process.communicate() for process in processes]
    if errors := [err for (_, err), process in zip(ended, processes, strict=True) if process.returncode or err]:
        raise RuntimeError("\n".join(errors))
    said = defaultdict(list)
    for (part, _), (out, _) in zip(parts, ended, strict=True):
        said[part].append(json.loads(out))
    return said


def print_waits(said: dict[str, list[Report]]) -> None:
    """How long writers and readers waited for the file, and how long their calls took with it."""
    print("| | opened the store | put off | waited, median | 95 % | longest | whole call, median | 95 % | longest |")
    print("|---" * 9 + "|")
    for part, reports in said.items():
        cells = [f"{len(reports)} x {part}", f"{sum(len(report['waits']) for report in reports):,} times"]
        cells.append(f"{sum(len(report['put_off']) for report in reports)} times")
        for name in ("waits", "calls"):
            values = sorted(1000 * value for report in reports for value in report[name])
            picked = (statistics.median(values), values[int(0.95 * len(values))], values[-1])
            cells += [f"{value:.0f} ms" for value in picked]
        print(f"| {' | '.join(cells)} |")


def generate(home: Path, runs: int, metrics: int, outcomes: int) -> None:
    """A home whose store has so many rows; the run directories say how the runs stand and hold no lines."""
    config = build_config(load_settings("pocket"))
    made = [make_run(home, n, "done" if n < runs - RUNNING else "running", config) for n in range(runs)]
    prepare(store_path(home))
    values = {
        "config": config.model_dump_json(),
        "running": runs - RUNNING,
        "names": NAMES,
        "tasks": TASKS,
        "metrics": metrics // runs,
        "outcomes": outcomes // runs,
    }
    with duckdb.connect(store_path(home)) as connection:
        connection.execute("CREATE TEMP TABLE made (run_id VARCHAR, number BIGINT)")
        connection.executemany("INSERT INTO made VALUES (?, ?)", [(run.run_id, n) for n, run in enumerate(made)])
        for statement in HERE.with_suffix(".sql").read_text().split(";")[:-1]:
            needed = {name: value for name, value in values.items() if f"${name}" in statement}
            connection.execute(statement, needed)


def paint(home: Path, page: str, refreshes: int) -> Report:
    """Seconds of a page's first paint in this process and in its next session, and of refreshes; memory, MB."""
    from streamlit.testing.v1 import AppTest

    from workbench import charts, evals, launch, ledger, recipes, screen, widgets  # noqa: F401, a server has them

    os.environ["WORKBENCH_HOME"] = str(home)
    times, memory = [], [memory_mb()]
    for runs in (1, 1 + refreshes):
        app = AppTest.from_file(str(HERE.parents[1] / "pages" / f"{page}.py"), default_timeout=60)
        for _ in range(runs):
            times.append(timed(app.run))
            memory.append(memory_mb())
            if app.exception or app.error:
                raise RuntimeError([element.value for element in (*app.exception, *app.error)])
    return {"times": times, "memory": memory}


def memory_mb() -> float:
    """What this process holds."""
    return psutil.Process().memory_info().rss / 1e6


def timed(action: Callable[[], object]) -> float:
    """Seconds that something takes."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def print_pages(home: Path, refreshes: int) -> None:
    """What each page takes, in a process of its own; the live one shows a run that is at work."""
    for run in all_runs(home)[-RUNNING:]:
        record_process(run, os.getpid())
    print("| page | first paint | a later session's | refresh | memory: before, first paint, half, all refreshes |")
    print("|---" * 5 + "|")
    for page in ("runs", "live"):
        command = [sys.executable, HERE, "paint", str(home), page, str(refreshes)]
        said = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        first, session, *later = said["times"]
        memory = [said["memory"][n] for n in (0, 1, len(said["memory"]) // 2, -1)]
        cells = (page, f"{first:.2f} s", f"{session:.2f} s", spread(later), ", ".join(f"{mb:.0f}" for mb in memory))
        print(f"| {' | '.join(cells)} MB |")


def spread(seconds: list[float]) -> str:
    """Median and range."""
    return f"{statistics.median(seconds):.3f} s ({min(seconds):.3f} to {max(seconds):.3f})"


def print_peer(home: Path, trackio: str, steps: int) -> None:
    """The store beside trackio with the same metrics: of as many runs read, of a tenth of them written."""
    db, runs = store_path(home), [run.run_id for run in all_runs(home)]
    with tempfile.TemporaryDirectory() as scratch:
        command = [trackio, HERE.with_name("store_trackio.py"), scratch, str(len(runs)), str(steps)]
        theirs = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    with tempfile.TemporaryDirectory() as scratch:
        config, count = build_config(load_settings("pocket")), max(1, len(runs) // 10)
        for number in range(count):
            place = make_run(Path(scratch), number, "done", config).phase(1, "sft")
            write_json(place.job, {})
            rows = [{"ts": 1e9, "name": name, "value": 1 / (1 + n), "step": n} for n in range(steps) for name in NAMES]
            append_lines(place.events, rows)
        points = count * steps * len(NAMES)
        writing = timed(lambda: store.rebuild(Path(scratch)))
        size = store_path(Path(scratch)).stat().st_size
    asked = runs[:: max(1, len(runs) // 20)]
    curve = [timed(lambda run=run: store.metrics_frame(db, run, "loss")) for run in asked]
    all_steps = "SELECT * FROM metrics WHERE run_id = ?"
    whole = [timed(lambda run=run: store.query(db, all_steps, [run])) for run in asked]
    listed = [timed(lambda: store.runs_frame(db)) for _ in range(5)]
    print("\n| | workbench | trackio |\n|---|---|---|")
    print(f"| points written a second | {points / writing:,.0f} | {theirs['points_per_s']:,.0f} |")
    print(f"| bytes a point | {size / points:.0f} | {theirs['bytes_per_point']:.0f} |")
    for what, mine, name in (
        ("a run's curve, as it is drawn", curve, "curve"),
        ("all of a run's metrics", whole, "whole"),
        ("the list of runs", listed, "runs"),
    ):
        print(f"| {what} | {spread(mine)} | {spread(theirs[name])} |")


def main() -> None:
    """Measure, and print tables; `write`, `read` and `paint` are the processes that are measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("load", "scale", "write", "read", "paint"))
    parser.add_argument("rest", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("--home", type=Path, help="to use, and to keep (default: a temporary one)")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--metrics", type=int, default=10_000_000)
    parser.add_argument("--outcomes", type=int, default=5_000_000)
    parser.add_argument("--refreshes", type=int, default=20)
    parser.add_argument("--trackio", help="a Python that has trackio")
    given = parser.parse_args()
    if given.what in ("write", "read"):
        home, number, seconds = given.rest
        print(json.dumps({"write": write, "read": read}[given.what](Path(home), int(number), float(seconds))))
        return
    if given.what == "paint":
        print(json.dumps(paint(Path(given.rest[0]), given.rest[1], int(given.rest[2]))))
        return
    with tempfile.TemporaryDirectory() as scratch:
        home = given.home or Path(scratch)
        home.mkdir(parents=True, exist_ok=True)
        if given.what == "load":
            print_waits(load(home, given.seconds))
            return
        if not store_path(home).exists():
            generate(home, given.runs, given.metrics, given.outcomes)
        print(f"{store_path(home)}: {store_path(home).stat().st_size / 1e6:,.0f} MB\n")
        print_pages(home, given.refreshes)
        if given.trackio:
            print_peer(home, given.trackio, given.metrics // given.runs // len(NAMES))


if __name__ == "__main__":
    main()
