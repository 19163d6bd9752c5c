"""Stops at any moment are stops: while the store is written, while the base is fetched, as the run ends."""

import random
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread

import pytest

from tests.conftest import much_to_record, small_config, wait_for_writing, wait_until
from workbench import launch, queueing, stopping, store
from workbench.events import read_lines
from workbench.rundir import RunDir, find_run, last_status, store_path
from workbench.runner import Runner

HELD = "import duckdb, sys, time; c = duckdb.connect(sys.argv[1]); print(flush=True); time.sleep(float(sys.argv[2]))"
NOT_HEARD = "does not stop; ending it"
"""What the supervisor says of a run that it has to end."""
LONG = {"num_questions": 400, "eval_questions": 400}


@pytest.fixture(autouse=True)
def nobody_asked(monkeypatch):
    """Runners that a test makes in its own process note there that they end."""
    monkeypatch.setattr(stopping._Process, "asked", False)
    monkeypatch.setattr(stopping._Process, "ends", False)


def queued(home, **changes) -> RunDir:
    """A run that waits in a queue that is paused."""
    queueing.change_settings(home, paused=True)
    return find_run(home, launch.enqueue([small_config(**LONG | changes)], home)[0])


def stop(run: RunDir) -> None:
    """Press stop and wait for the end."""
    home = run.path.parents[1]
    launch.ask_stop(home, run.run_id)
    wait_until(lambda: launch.observed_status(run)[0] in launch.ENDED and not queueing.tickets(home), 60)


def test_a_stop_while_the_store_is_written_is_no_failure(home):
    run = queued(home)
    much_to_record(run)
    queueing.change_settings(home, paused=False)
    wait_for_writing(run)
    stop(run)
    assert launch.observed_status(run) == ("stopped", None)
    assert not read_lines(queueing.QueueDir.of(home).alerts)[0]


@pytest.mark.slow
def test_fifty_stops_at_random_moments_under_a_slow_store_are_fifty_stopped(home):
    chance, ends = random.Random(1), []
    run = queued(home)
    much_to_record(run)
    queueing.change_settings(home, paused=False)
    for _ in range(50):
        wait_until(lambda: last_status(run)["status"] == "running", 60)
        time.sleep(chance.uniform(0, 2.5))
        stop(run)
        ends.append(launch.observed_status(run))
        launch.resume(home, run.run_id)
    assert ends == [("stopped", None)] * 50
    assert not read_lines(queueing.QueueDir.of(home).alerts)[0]


def test_a_stop_while_somebody_else_holds_the_store_is_heard(home):
    run, db = queued(home), store_path(home)
    store.rebuild(home)
    with subprocess.Popen([sys.executable, "-c", HELD, str(db), "60"], stdout=subprocess.PIPE) as holder:
        holder.stdout.readline()
        queueing.change_settings(home, paused=False)
        wait_until(lambda: last_status(run)["status"] == "running")
        time.sleep(1)  # it waits for the store
        launch.ask_stop(home, run.run_id)
        wait_until(lambda: last_status(run)["status"] == "stopped")
        holder.kill()
    assert NOT_HEARD not in queueing.QueueDir.of(home).log.read_text()


def test_a_second_signal_cuts_no_last_words_short():
    code = """if True:
        import os, signal
        from workbench import stopping
        stopping.listen()
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
        try:
            stopping.pause(60)
        except stopping.Stopped:
            os.kill(os.getpid(), signal.SIGTERM)
            stopping.pause(0.3)
            print("said")
        """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert (done.stdout, done.returncode) == ("said\n", 0), done.stderr


def test_a_stop_while_the_base_is_fetched_is_heard(home, monkeypatch):
    asked, over = Event(), Event()

    class Silent(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.set()
            over.wait(60)

    with ThreadingHTTPServer(("127.0.0.1", 0), Silent) as hub:
        Thread(target=hub.serve_forever, daemon=True).start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{hub.server_port}")
        monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", "60")
        run = queued(home, model="nobody/nothing")
        queueing.change_settings(home, paused=False)
        try:
            assert asked.wait(60)
            stop(run)
            assert last_status(run)["status"] == "stopped"
            assert NOT_HEARD not in queueing.QueueDir.of(home).log.read_text()
        finally:
            over.set()
            hub.shutdown()


def test_a_stop_that_crosses_with_the_end_does_not_undo_it(home):
    run, db = queued(home), store_path(home)
    Runner(run).note("running")
    with subprocess.Popen([sys.executable, "-c", HELD, str(db), "2"], stdout=subprocess.PIPE) as holder:
        holder.stdout.readline()
        late = Thread(target=lambda: (time.sleep(0.5), launch.write_status(run, "stopping")))
        late.start()  # it had looked before the run was done
        Runner(run).note("done")
        late.join()
    assert last_status(run)["status"] == "done"
