"""The queue and its supervisor: real runs started, ordered, held, paused, adopted; somebody told."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer

import psutil
import pytest

from tests.conftest import small_config, wait_for_end, wait_until
from workbench import alerts, compare, launch, processes, queue_rows, queueing, store
from workbench.place import take_place
from workbench.rundir import RunDir, find_run, read_json, store_path, write_json
from workbench.supervisor import Supervisor

WHOLE = {"threads": None}
"""A run that wants every core, so that the next one waits."""


def status(home, run_id):
    return launch.observed_status(find_run(home, run_id))[0]


def supervisor(home):
    """The supervisor's process, if it lives."""
    if (recorded := read_json(queueing.QueueDir.of(home).process)) is None:
        return None
    try:
        found = psutil.Process(recorded["pid"])
        return found if found.status() != psutil.STATUS_ZOMBIE else None
    except psutil.NoSuchProcess:
        return None


def line(home):
    """Who waits, in the order of their turn."""
    return [ticket.name for ticket in queueing.tickets(home) if not ticket.granted]


@pytest.fixture
def hook():
    """A webhook: its address, which holds a secret, and what it has got."""
    got = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self):
            got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(302 if self.path.endswith("moved") else 200)
            self.end_headers()

        def log_message(self, *words):
            pass

    with HTTPServer(("127.0.0.1", 0), Hook) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/secret", got
        server.shutdown()


@pytest.fixture
def mine(home):
    """The supervisor, in this process: it looks when it is told to."""
    queueing.change_settings(home, paused=True)
    with queueing.supervisor_lock(home).acquire(timeout=0) as lock:
        processes.record_process(queueing.QueueDir.of(home), os.getpid())
        yield Supervisor(home, lock)
        queueing.QueueDir.of(home).process.unlink()  # else the fixture would end this process


@pytest.fixture
def paused(home):
    """A home whose queue is paused, so that everybody waits."""
    queueing.change_settings(home, paused=True)
    return home


def test_a_double_click_starts_one_run(paused):
    older = RunDir(paused / "runs" / "from-afar")  # its id sorts behind those of launched runs
    write_json(older.config, {"created_at": 1.0, "config": {}})
    write_json(older.status, {"status": "done", "since": 1.0, "iteration": None, "phase": None, "error": None})
    with ThreadPoolExecutor(4) as clicks:
        found = list(clicks.map(lambda _: launch.launch(small_config(), paused, once_s=5), range(4)))
    assert len(set(found)) == 1 and line(paused) == found[:1]
    assert launch.launch(small_config(seed=1), paused, once_s=5) != found[0]
    assert launch.launch(small_config(), paused) != found[0]
    pair = [small_config(seed=seed) for seed in (2, 3)]
    both = compare.launch_all(pair, paused, once_s=5)
    assert compare.launch_all(pair, paused, once_s=5) == both and len(set(both)) == 2
    assert not {*compare.launch_all(pair, paused)} & {*both}


def test_order_priority_and_moving(paused):
    a, b, c, d = (launch.launch(small_config(seed=seed), paused) for seed in range(4))
    assert line(paused) == [a, b, c, d]
    queueing.change(paused, c, priority=5)
    assert line(paused) == [c, a, b, d]
    queueing.move(paused, d, -1)
    assert line(paused) == [c, a, d, b]
    queueing.move(paused, d, -9)
    assert line(paused) == [d, c, a, b]
    queueing.move(paused, d, 2)
    assert line(paused) == [c, a, d, b]
    queueing.move(paused, c, 9)
    assert line(paused) == [a, d, b, c]
    assert queueing.ticket_of(paused, c).priority == 0
    for _ in range(40):  # the numbers between two neighbours run out
        want = line(paused)
        want.insert(1, want.pop(2))
        queueing.move(paused, want[1], -1)
        assert line(paused) == want
    with pytest.raises(ValueError, match="-100 to 100; got 101"):
        queueing.change(paused, a, priority=101)
    with pytest.raises(ValueError, match="nobody-s0 does not wait in the queue"):
        queueing.move(paused, "nobody-s0", 1)
    launch.stop(paused, a)
    assert line(paused) == [d, b, c] and status(paused, a) == "stopped"
    assert "paused" in queue_rows.why_waiting(paused)[d]


def test_runs_share_the_machine_by_cores_and_wait_for_them(home, monkeypatch):
    monkeypatch.setattr(queueing, "spare_threads", lambda: 3)
    first = queueing.Ticket(name="a", kind="run", path="/a", order=1, cores=2)
    grant = queueing.Grant(gpus=(), cores=2, at=1.0)
    queueing.write_ticket(home, first.model_copy(update={"granted": grant}))
    for name, order, cores in (("b", 2, 2), ("c", 3, 1)):
        queueing.write_ticket(home, first.model_copy(update={"name": name, "order": order, "cores": cores}))
    assert queueing.free(home).cores == 1
    assert queue_rows.why_waiting(home) == {"b": "needs 2 cores; 1 of 3 are free", "c": "after those above it"}


def test_gpus_are_given_by_number_with_their_share_of_the_cores(home, monkeypatch):
    monkeypatch.setattr(queueing, "gpu_ids", lambda: ("0", "1", "2", "3"))
    monkeypatch.setattr(queueing, "spare_threads", lambda: 16)
    ticket = queueing.Ticket(name="a", kind="run", path="/a", order=1, gpus=1)
    assert queueing.wanted(ticket) == (1, 4)
    grant = queueing.Grant(gpus=("0", "2"), cores=8, at=1.0)
    queueing.write_ticket(home, ticket.model_copy(update={"granted": grant}))
    assert queueing.free(home) == queueing.Free(("1", "3"), 8)
    assert queueing.wanted(ticket.model_copy(update={"gpus": None})) == (4, 16)


def test_a_killed_supervisor_is_replaced_and_the_run_goes_on(home):
    first = launch.launch(small_config(**WHOLE), home)
    second = launch.launch(small_config(seed=1, **WHOLE), home)
    wait_until(lambda: status(home, first) == "running")
    doomed = supervisor(home)
    runner = read_json(find_run(home, first).process)
    doomed.kill()
    wait_until(lambda: supervisor(home) not in (None, doomed), 60)  # the runner's doing
    assert read_json(find_run(home, first).process) == runner and status(home, second) == "queued"
    launch.stop(home, first)
    wait_until(lambda: status(home, second) == "running", 30)
    launch.stop(home, second)
    wait_until(lambda: not queueing.tickets(home), 10)


def test_a_lost_ticket_and_a_run_of_an_earlier_version_are_taken_up_again(paused):
    run_id = launch.launch(small_config(), paused)
    queueing.remove_ticket(paused, run_id)
    other = launch.launch(small_config(seed=1), paused)
    supervisor(paused).kill()
    wait_until(lambda: queueing.ensure(paused) or line(paused) == [run_id, other], 30)


def test_asking_to_stop_returns_at_once_and_a_deaf_run_is_ended(home):
    run_id = launch.launch(small_config(num_questions=400), home)
    run = find_run(home, run_id)
    wait_until(lambda: status(home, run_id) == "running" and len(processes.processes_of(run)) > 1)
    os.kill(read_json(run.process)["pid"], signal.SIGSTOP)  # it hears nothing
    began = time.monotonic()
    launch.ask_stop(home, run_id)
    assert time.monotonic() - began < 2 and status(home, run_id) == "stopping"
    wait_until(lambda: status(home, run_id) == "stopped", 30)
    assert not processes.processes_of(run)


def test_what_left_the_group_is_ended_too(home, tmp_path):
    place = queueing.WorkDir(tmp_path / "work")
    place.path.mkdir()
    script = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(99)'], start_new_session=True); time.sleep(99)"  # noqa: E501
    (tmp_path / "link").symlink_to(place.path)
    marked = os.environ | {processes.MARK: str(tmp_path / "link")}  # it was started by another way
    process = subprocess.Popen([sys.executable, "-c", script], env=marked, start_new_session=True)
    processes.record_process(place, process.pid)
    wait_until(lambda: len(processes.processes_of(place)) == 2, 20)
    threading.Thread(target=process.wait).start()
    assert processes.end_group(place, 0.5) == [] and processes.processes_of(place) == []


def test_a_failure_is_told_and_can_pause_the_queue(home, tmp_path):
    said = tmp_path / "said"
    write = f"import sys; open({str(said)!r}, 'a').write(sys.argv[-1] + '\\n')"
    (home / "alerts.toml").write_text(f"command = {json.dumps([sys.executable, '-c', write])}\n")
    queueing.change_settings(home, continue_on_error=False)
    run_id = launch.launch(small_config(**WHOLE), home)
    second = launch.launch(small_config(seed=1, **WHOLE), home)
    wait_until(lambda: status(home, run_id) == "running")
    for process in processes.processes_of(find_run(home, run_id)):
        process.kill()
    wait_until(lambda: said.exists() and said.read_text(), 30)
    assert f"{run_id} failed. The runner of {run_id} is gone" in said.read_text()
    wait_until(lambda: queueing.settings_of(home).paused, 10)
    assert queueing.settings_of(home).why == f"{run_id} failed" and status(home, second) == "queued"
    assert read_json(find_run(home, run_id).status)["status"] == "failed"
    wait_until(lambda: "failed" in set(store.runs_frame(store_path(home))["status"]), 60)
    queueing.change_settings(home, paused=False)
    wait_until(lambda: status(home, second) == "running", 30)
    launch.stop(home, second)


def test_silence_and_alarms_are_told_once_to_a_webhook(home, monkeypatch, hook):
    address, got = hook
    monkeypatch.setenv("MY_HOOK", address)
    (home / "alerts.toml").write_text('webhook = "env:MY_HOOK"\nstalled_minutes = 0.01\n')
    run = launch.RunDir(home / "runs" / "r-1")
    place = run.phase(1, "sample")
    place.path.mkdir(parents=True)
    place.events.write_text('{"ts": 1, "name": "alert", "value": null, "step": 0, "text": "They grow alike."}\n')
    write_json(place.job, {})
    for file in (place.events, place.job):
        os.utime(file, (time.time() - 60,) * 2)
    about = {"status": "running", "since": time.time() - 99, "iteration": 1, "phase": "sample", "error": None}
    write_json(run.status, about)
    watch = alerts.Watch(home)
    for _ in range(2):
        watch.looked_at = -99.0
        watch.look([run])
    written = queueing.QueueDir.of(home).alerts
    wait_until(lambda: written.exists() and len(written.read_text().splitlines()) == 2, 10)
    assert sorted(alert["kind"] for alert in got) == ["alarm", "stall"]
    assert any("r-1, iteration 1: They grow alike." == alert["text"] == alert["content"] for alert in got)
    assert alerts.Watch(home).told == watch.told, "a new supervisor does not tell it again"
    assert "secret" not in written.read_text()


def test_a_mistake_in_alerts_toml_is_named_and_hides_the_address(home, hook):
    (home / "alerts.toml").write_text('webhok = "https://hooks/secret"\n')
    with pytest.raises(ValueError, match="webhok: Extra inputs") as said:
        alerts.read_config(home)
    assert "hooks/secret" not in str(said.value)
    (home / "alerts.toml").write_text('webhook = "http://127.0.0.1:1/secret"\n')
    assert alerts.tell(home, "failure", "r", "It failed.") == ["webhook: ConnectError"]
    (home / "alerts.toml").write_text(f'webhook = "{hook[0]}/moved"\n')
    assert alerts.tell(home, "failure", "r", "It failed.") == ["webhook: answered 302"]
    (home / "alerts.toml").write_text('webhook = "env:NOT_SET_HERE"\n')
    assert "not set where the supervisor was started" in alerts.tell(home, "failure", "r", "It failed.")[0]


def test_the_supervisor_goes_when_nobody_needs_it(home, monkeypatch):
    run_id = launch.launch(small_config(), home)
    wait_until(lambda: status(home, run_id) == "running", 60)
    launch.stop(home, run_id)
    assert wait_for_end(home, run_id)[0] == "stopped"
    wait_until(lambda: "nobody waits or works" in queueing.QueueDir.of(home).log.read_text(), 60)
    wait_until(lambda: supervisor(home) is None, 60)


def test_a_runner_that_cannot_start_is_a_failure_and_not_started_again(home, hook):
    (home / "alerts.toml").write_text(f'webhook = "{hook[0]}"\n')
    queueing.change_settings(home, paused=True)
    run_id = launch.launch(small_config(), home)
    run = find_run(home, run_id)
    written = run.config.read_text()
    run.config.write_text(written.replace('"method": "imm"', '"method": "none"'))
    queueing.change_settings(home, paused=False)
    wait_until(lambda: status(home, run_id) == "failed", 60)
    assert "did not start" in launch.observed_status(run)[1] and "method" in run.log.read_text()
    wait_until(lambda: not queueing.tickets(home) and hook[1], 20)
    assert "secret" not in queueing.QueueDir.of(home).log.read_text()
    run.config.write_text(written)
    launch.resume(home, run_id)
    wait_until(lambda: status(home, run_id) == "running", 60)
    launch.stop(home, run_id)


def granted(home, run_id, at=1.0):
    """Give a waiting one a place, as a supervisor would."""
    grant = queueing.Grant(gpus=(), cores=1, at=at)
    ticket = queueing.ticket_of(home, run_id).model_copy(update={"granted": grant})
    queueing.write_ticket(home, ticket)
    return ticket


def test_what_cannot_be_read_stops_nobody_else(home, mine):
    a, b, c = (launch.launch(small_config(seed=seed), home) for seed in range(3))
    queueing.QueueDir.of(home).ticket(b).write_text("")  # as a power failure leaves it
    queueing.QueueDir.of(home).ticket("hand").write_text('{"name": "hand", "colour": 1}')
    granted(home, c)
    find_run(home, c).status.write_text('{"status": "runn')
    place = queueing.WorkDir(home / "labs" / "x")
    processes.record_process(place, os.getpid())
    queueing.write_ticket(home, queueing.Ticket(name="lab-x", kind="lab", path=str(place.path), order=time.time()))
    assert line(home) == [a, "lab-x"]
    mine.look()
    assert queueing.ticket_of(home, "lab-x").granted and status(home, c) == "failed"
    mine.attempt("adopting", mine.adopt)
    assert a in line(home) and b in line(home) and not mine.wrong.get("adopting")
    assert len(list((home / "queue").glob("*.unreadable"))) == 2
    queueing.QueueDir.of(home).settings.write_text("{")
    assert queueing.settings_of(home).paused and "cannot be read" in queue_rows.why_waiting(home)[a]
    queueing.change_settings(home, paused=False)
    assert queueing.settings_of(home) == queueing.QueueSettings()
    queueing.change_settings(home, paused=True)


def test_a_run_whose_launcher_or_supervisor_was_killed_in_the_middle_waits(home, mine):
    a, b = (launch.launch(small_config(seed=seed), home) for seed in range(2))
    queueing.remove_ticket(home, a)
    find_run(home, a).status.unlink()
    granted(home, b)  # and no runner was started
    mine.adopt()
    mine.look()
    assert sorted(line(home)) == [a, b] and status(home, b) == "queued"
    find_run(home, a).config.unlink()
    mine.adopt()
    assert line(home) == [b]


def test_a_lab_whose_ticket_is_taken_away_waits_on(home, mine):
    place, did = queueing.WorkDir(home / "labs" / "a"), []

    def lab():
        with take_place(place, home, "lab") as grant:
            did.append(grant.cores)

    work = threading.Thread(target=lab)
    work.start()
    for _ in range(2):
        wait_until(lambda: queueing.ticket_of(home, "lab-a"), 10)
        queueing.remove_ticket(home, "lab-a")
    wait_until(lambda: queueing.ticket_of(home, "lab-a"), 10)
    mine.look()
    work.join()
    assert did == [queueing.spare_threads()] and not queueing.tickets(home)


def test_two_who_resume_a_run_at_once_queue_it_once(home, mine):
    run_id = launch.launch(small_config(), home)
    launch.ask_stop(home, run_id)
    said = []

    def resume():
        try:
            launch.resume(home, run_id)
            granted(home, run_id)  # the supervisor was quick
        except ValueError as error:
            said.append(str(error))

    with queueing.locked(home):  # both have clicked
        clicks = [threading.Thread(target=resume) for _ in range(2)]
        for click in clicks:
            click.start()
        time.sleep(0.3)
    for click in clicks:
        click.join()
    assert said == [f"{run_id} is queued; there is nothing to resume"]
    assert queueing.ticket_of(home, run_id).granted


def test_an_alarm_at_the_end_of_a_phase_and_a_second_failure_are_told(home, mine, monkeypatch):
    told = []
    monkeypatch.setattr(alerts, "tell", lambda root, kind, run_id, text, of=None: told.append((kind, text)))
    run_id = launch.launch(small_config(), home)
    run = find_run(home, run_id)
    place = run.phase(1, "sample")
    write_json(place.job, {})
    place.events.write_text('{"ts": 1, "name": "alert", "value": null, "step": 0, "text": "They grow alike."}\n')
    for since in (1.0, 2.0):  # it was resumed, and ended in the same way
        about = {"since": since, "iteration": 1, "phase": "sft", "error": "Out of memory."}
        write_json(run.status, {"status": "failed"} | about)
        write_json(run.process, {"pid": 1, "create_time": 0.0, "ticks": -1, "host": os.uname().nodename})
        launch._queue(run)
        write_json(run.status, {"status": "failed"} | about)
        granted(home, run_id)
        mine.look()
    wait_until(lambda: len(told) == 3, 5)
    assert sorted(kind for kind, _ in told) == ["alarm", "failure", "failure"]


def test_supervisors_are_started_one_at_a_time_and_see_every_gpu(paused, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")  # a runner's, after it has narrowed its sight
    run_id = launch.launch(small_config(), paused)
    for _ in range(5):
        queueing.ensure(paused)
    there = processes.processes_of(queueing.QueueDir.of(paused))
    assert len(there) == 1 and there[0].environ().get("CUDA_VISIBLE_DEVICES") == queueing.VISIBLE
    launch.stop(paused, run_id)


def test_a_process_is_known_whatever_the_clock_says_and_not_by_another_machines_number(tmp_path):
    place = queueing.WorkDir(tmp_path / "work")
    place.path.mkdir()
    with subprocess.Popen(["sleep", "30"]) as process:
        processes.record_process(place, process.pid)
        recorded = read_json(place.process)
        write_json(place.process, recorded | {"create_time": recorded["create_time"] + 3600})  # the clock was set
        assert processes.is_alive(place)
        write_json(place.process, recorded | {"ticks": recorded["ticks"] + 1})
        assert not processes.is_alive(place)
        write_json(place.process, recorded | {"host": "another-machine"})
        processes.end_group(place, 0)
        assert process.poll() is None
        process.kill()


def test_what_ends_while_it_is_looked_at_is_no_error(tmp_path):
    place = queueing.WorkDir(tmp_path)
    marked = os.environ | {processes.MARK: str(tmp_path)}
    until = time.monotonic() + 2
    while time.monotonic() < until:
        short = [subprocess.Popen(["sleep", str(0.02 + n / 200)], env=marked) for n in range(8)]
        processes.record_process(place, short[0].pid)
        ends = [threading.Thread(target=process.wait) for process in short]
        for end in ends:
            end.start()
        while any(end.is_alive() for end in ends):
            processes.processes_of(place)


def test_gpus_go_to_nobody_before_the_driver_has_let_go(home, mine, monkeypatch):
    run_id = launch.launch(small_config(), home)
    run = find_run(home, run_id)
    sleeper = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(99)"],
        env=os.environ | {processes.MARK: str(run.path.resolve())},
        start_new_session=True,
    )
    processes.record_process(run, sleeper.pid)
    grant = queueing.Grant(gpus=("0",), cores=1, at=time.time())
    queueing.write_ticket(home, queueing.ticket_of(home, run_id).model_copy(update={"granted": grant}))
    launch.write_status(run, "stopping")
    monkeypatch.setattr("workbench.supervisor.gpu_holders", lambda: {sleeper.pid})
    wait_until(lambda: mine.look() and mine.pids.get(run_id), 20)
    sleeper.kill()
    sleeper.wait()
    mine.look()
    assert queueing.ticket_of(home, run_id), "the driver still counts it"
    monkeypatch.setattr("workbench.supervisor.gpu_holders", lambda: set())
    mine.look()
    assert queueing.ticket_of(home, run_id) is None and status(home, run_id) == "stopped"


def test_a_follower_that_was_killed_while_it_stopped_has_stopped(home, mine):
    (run_id,) = launch.enqueue([small_config(on="ray")], home)
    run = find_run(home, run_id)
    grant = queueing.Grant(gpus=(), cores=0, at=time.time())
    queueing.write_ticket(home, queueing.ticket_of(home, run_id).model_copy(update={"granted": grant}))
    follower = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(99)"])
    processes.record_process(run, follower.pid, follows=True)
    launch.write_status(run, "stopping")
    follower.kill()
    follower.wait()
    assert status(home, run_id) == "stopped"
    mine.look()
    assert read_json(run.status)["status"] == "stopped" and not queueing.tickets(home)
