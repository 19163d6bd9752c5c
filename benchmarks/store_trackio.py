# ruff: noqa: T201
"""The metrics of benchmarks/store.py in trackio, run by an environment that has it: store_trackio.py DIR RUNS STEPS."""

import json
import os
import sys
import time

directory, runs, steps = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
os.environ["TRACKIO_DIR"] = directory

from trackio.sqlite_storage import SQLiteStorage as Storage  # noqa: E402, reads the variable as it is imported

PROJECT, POINTS = "peer", 1500
NAMES = ("loss", "learning_rate", "grad_norm", "tokens_per_s")


def timed(action, *arguments, **options):
    """Seconds that something takes."""
    began = time.perf_counter()
    action(*arguments, **options)
    return time.perf_counter() - began


logs = [dict.fromkeys(NAMES, 1 / (1 + step)) for step in range(steps)]
writing = sum(timed(Storage.bulk_log, PROJECT, f"run-{number}", logs) for number in range(runs))
asked = [f"run-{number}" for number in range(0, runs, max(1, runs // 20))]
size = sum(entry.stat().st_size for entry in os.scandir(directory) if entry.is_file())
said = {
    "points_per_s": len(NAMES) * steps * runs / writing,
    "bytes_per_point": size / (len(NAMES) * steps * runs),
    "curve": [timed(Storage.get_logs, PROJECT, run, max_points=POINTS) for run in asked],
    "whole": [timed(Storage.get_logs, PROJECT, run) for run in asked],
    "runs": [timed(Storage.get_max_steps_for_runs, PROJECT) for _ in range(5)],
}
print(json.dumps(said))
