"""What a phase costs: over all attempts, a peak of its own, what is left of it on disk."""

import json
import os
import subprocess
import sys
import time

import pytest

from tests.conftest import ROOT
from workbench.events import append_lines, attempts, event_log, read_lines
from workbench.jobs import Section
from workbench.phases import cost
from workbench.phases.process import run_phase
from workbench.rundir import PhaseDir, read_json

MB = 2**20


def phase(folder, name="sample"):
    """A phase directory with an empty job."""
    place = PhaseDir(folder / "iteration_1" / name, 1, name)
    place.path.mkdir(parents=True)
    place.job.write_text("{}")
    return place


def cost_of(place, work, reports=None):
    """Run a phase that does `work`; the block `cost` of its result."""

    def run(job, place, emit):
        work()
        return reports or {}

    assert run_phase(place.path, Section, run) is None
    return read_json(place.result)["cost"]


def held(megabytes):
    """Hold memory that is really written to for a moment."""
    block = bytearray(megabytes * MB)
    block[:: 2**12] = b"1" * len(block[:: 2**12])
    return len(block)


@pytest.mark.skipif(not cost.reset_peak(), reason="this system cannot set back a process's peak")
def test_phases_of_one_process_have_each_their_own_peak(tmp_path):
    script = f"""
import json, pathlib
from tests.phases.test_cost import cost_of, held, phase
place = pathlib.Path({str(tmp_path)!r})
print(json.dumps([cost_of(phase(place, "sample"), lambda: held(400)), cost_of(phase(place, "sft"), lambda: held(10))]))
"""  # in a process that other tests left nothing in
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    large, small = json.loads(done.stdout)
    assert large["memory_source"].startswith("kernel")
    assert 300 / 1024 < large["peak_memory_gib"] - small["peak_memory_gib"] < 480 / 1024


def test_what_a_phase_starts_counts(tmp_path):
    child = f"import time; block = bytearray({300 * MB}); block[::4096] = b'1' * len(block[::4096]); time.sleep(2.5)"
    alone = cost_of(phase(tmp_path, "sample"), lambda: time.sleep(1.2))
    both = cost_of(phase(tmp_path, "sft"), lambda: subprocess.run([sys.executable, "-c", child]))
    assert both["peak_memory_gib"] - alone["peak_memory_gib"] > 280 / 1024


def test_without_the_kernels_peak_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(cost, "PROC", tmp_path / "no" / "proc")
    found = cost_of(phase(tmp_path), lambda: held(10))
    assert found["memory_source"] == "samples of RSS" and found["peak_memory_gib"] > 0


def test_earlier_attempts_count_and_bytes_are_what_is_left(tmp_path):
    place = phase(tmp_path)

    def fails():
        place.solutions.write_text("a" * 999 + "\n")
        time.sleep(0.4)
        raise ValueError("the first attempt")

    def run(job, place, emit):
        fails()

    assert run_phase(place.path, Section, run) == "the first attempt"
    time.sleep(1.5)  # nobody works: not counted, since the runner writes the job anew
    place.job.write_text("{}")

    def finish():
        (place.checkpoint / "deep").mkdir(parents=True)
        (place.checkpoint / "deep" / "model.safetensors").write_bytes(b"0" * 5000)
        time.sleep(0.3)

    found = cost_of(place, finish, {"num_tokens": 7})
    assert found["attempts"] == 2 and found["num_tokens"] == 7
    assert 0.7 <= found["seconds"] < 1.5
    assert found["bytes_written"] == 6000 + place.events.stat().st_size


def test_an_old_job_run_by_hand_costs_no_days(tmp_path):
    place = phase(tmp_path)
    long_ago = time.time() - 86_400
    os.utime(place.job, (long_ago, long_ago))
    event_log(place.events)("note", text="from before there were costs")
    assert cost_of(place, lambda: None)["seconds"] < 3600  # since this process began, at most


def test_a_killed_attempt_counts_up_to_its_last_report(tmp_path):
    rows = [("started", 10, 8), ("progress", 12, 0), ("started", 100, 99), ("progress", 103, 0), ("ended", 104, 0)]
    file = tmp_path / "events.jsonl"
    append_lines(file, [{"ts": ts, "name": name} | ({"since": since} if since else {}) for name, ts, since in rows])
    assert attempts(read_lines(file)[0]) == [4, 5]
    assert attempts([{"ts": 1, "name": "progress"}]) == []
