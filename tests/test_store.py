"""The store is an index: what the run directories say, whoever writes and whoever holds the file."""

import contextlib
import os
import shutil
import subprocess
import sys
import threading
import time

import duckdb
import pytest
from streamlit.testing.v1 import AppTest

from benchmarks.store import load, make_run
from tests.conftest import ROOT, small_config, wait_for_end
from workbench import charts, launch, queries, store, storefile
from workbench.events import event_log
from workbench.ingest import TABLES, read_run
from workbench.processes import record_process
from workbench.rundir import RunDir, read_json, store_path, write_json

KEYS = {
    "labs": "lab_id",
    "merge_evals": "lab_id, point_id, split, task",
    "merge_outcomes": "lab_id, point_id, split, task, question_id",
    "runs": "run_id",
    "phases": "run_id, iteration, phase",
    "checkpoints": "checkpoint_id",
    "metrics": "run_id, iteration, phase, name, step",
    "solutions": "run_id, iteration, question_id, sample",
    "outcomes": "run_id, checkpoint_id, task, question_id, sample",
    "evals": "run_id, checkpoint_id, task",
    "pass_at_k": "run_id, checkpoint_id, task, k",
    "contamination": "run_id, iteration, task, question_id",
    "notes": "run_id, iteration, phase, text",
    "regrades": "run_id, iteration, phase, checkpoint_id, task, question_id, sample",
    "importance": "run_id, iteration, text_set, layer, module",
    "weight_change": "run_id, checkpoint_id, compared_to, layer, module",
    "superficiality": "run_id, checkpoint_id, compared_to, text_set",
}

NOT_HERE = ("labs", "merge_evals", "merge_outcomes", "contamination", "notes", "regrades")
"""Empty for a run on clean tasks that nobody opened a lab on or graded again; other tests have them."""


def everything(db):
    with store.one_look(db):
        return every_table(db)


def every_table(db):
    return {table: store.query(db, f"SELECT * FROM {table} ORDER BY {KEYS[table]}") for table in TABLES}


def test_rebuild_gives_what_the_runner_recorded(finished_run, tmp_path):
    root = finished_run.path.parents[1]
    live = everything(store_path(root))
    assert store.rebuild(root) == 1
    again = everything(store_path(root))
    for table, frame in live.items():
        assert len(frame) > 0 or table in NOT_HERE, table
        assert frame.equals(again[table]), table


def test_every_checkpoint_is_scored_on_every_task(finished_run):
    evals = store.evals_frame(store_path(finished_run.path.parents[1]), finished_run.run_id)
    assert list(dict.fromkeys(evals["kind"])) == ["base", "sft", "merged"]
    assert len(evals) == 3 * 4
    assert set(evals["domain"]) == {"ID", "OOD"}
    assert (evals["num_questions"] == 16).all()
    assert ((evals["ci_low"] <= evals["accuracy"]) & (evals["accuracy"] <= evals["ci_high"])).all()


def test_outcomes_hold_text_and_agree_with_evals(finished_run):
    db = store_path(finished_run.path.parents[1])
    both = store.query(
        db,
        "SELECT e.num_correct, o.correct FROM evals e"
        " JOIN (SELECT checkpoint_id, task, sum(is_correct::INT) AS correct,"
        " min(length(text)) AS shortest FROM outcomes WHERE sample = 0 GROUP BY ALL) o USING (checkpoint_id, task)",
    )
    assert len(both) == 12
    assert (both["num_correct"] == both["correct"]).all()


def test_ingesting_in_pieces_equals_ingesting_at_once(finished_run, tmp_path):
    run = RunDir(tmp_path / "runs" / finished_run.run_id)
    shutil.copytree(finished_run.path, run.path)
    sample = run.phase(1, "sample")
    whole = sample.solutions.read_bytes()
    sample.result.rename(sample.path / "aside")
    db, offsets = tmp_path / "pieces.duckdb", {}
    for end in (len(whole) // 3, len(whole) // 2, len(whole)):  # cuts lines in two
        sample.solutions.write_bytes(whole[:end])
        offsets = store.ingest(db, run, offsets)
    (sample.path / "aside").rename(sample.result)
    store.ingest(db, run, offsets)
    store.ingest(tmp_path / "once.duckdb", run, {})
    first, second = everything(db), everything(tmp_path / "once.duckdb")
    assert all(first[table].equals(second[table]) for table in TABLES)


def test_a_torn_line_is_ended_and_passed_over(finished_run, tmp_path):
    run = RunDir(tmp_path / "runs" / finished_run.run_id)
    shutil.copytree(finished_run.path, run.path)
    events = run.phase(1, "sft").events
    before = len(read_run(run, {}).rows["metrics"])
    with events.open("a") as file:
        file.write('{"ts": 1, "name": "lo')
    assert len(read_run(run, {}).rows["metrics"]) == before


def test_a_held_store_costs_delay_only(tmp_path):
    db = tmp_path / "held.duckdb"
    store.query(db, "SELECT 1")
    hold = f"import duckdb, time; c = duckdb.connect({str(db)!r}); print('held', flush=True); time.sleep(1.5)"
    with subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE) as holder:
        holder.stdout.readline()
        began = time.monotonic()
        assert store.query(db, "SELECT 42 AS x")["x"][0] == 42
        assert time.monotonic() - began > 0.5
    with (
        pytest.raises(store.StoreBusy, match=r"held.*duckdb"),
        subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE) as holder,
    ):
        holder.stdout.readline()
        with store.connect(db, read_only=True, wait_s=0.1):
            pass


def test_readers_and_a_writer_in_one_process_do_not_clash(finished_run, tmp_path):
    db, errors = tmp_path / "shared.duckdb", []

    def work(action):
        try:
            for _ in range(8):
                action()
        except Exception as error:
            errors.append(error)

    actions = [lambda: store.ingest(db, finished_run, {}), lambda: store.runs_frame(db), lambda: store.runs_frame(db)]
    threads = [threading.Thread(target=work, args=(action,)) for action in actions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


@pytest.mark.parametrize(
    "sql", ["DELETE FROM runs", "SELECT * FROM read_csv('/etc/passwd')", "COPY runs TO '/tmp/x'", "nonsense"]
)
def test_query_reads_the_store_and_nothing_else(tmp_path, sql):
    with pytest.raises(ValueError):
        store.query(tmp_path / "s.duckdb", sql)


@pytest.mark.parametrize(
    ("sql", "why"),
    [
        ("DELETE FROM runs", "one SELECT"),
        ("SELECT 1; SELECT 2", "one SELECT"),
        ("SET memory_limit = '9GB'", "one SELECT"),
        ("COPY runs TO '/tmp/x'", "one SELECT"),
        ("ATTACH '/tmp/x.duckdb'", "one SELECT"),
        ("SELECT * FROM read_csv('/etc/passwd')", "disabled by configuration"),
        ("SELECT * FROM glob('/etc/*')", "disabled by configuration"),
        ("nonsense", "syntax"),
        ("", "one SELECT"),
        ("SELECT count(*) FROM range(1000000000000)", "given up after 0.3 s"),
        ("SELECT list(i) FROM range(1000000000) t(i)", "(given up|[Mm]emory)"),
    ],
)
def test_a_persons_query_is_one_select_on_the_store_within_its_limits(tmp_path, sql, why):
    began = time.monotonic()
    with pytest.raises(ValueError, match=why):
        queries.query_limited(tmp_path / "s.duckdb", sql, 10, 0.3)
    assert time.monotonic() - began < 3
    assert queries.query_limited(tmp_path / "s.duckdb", "SELECT 1 AS x", 10, 0.3)[0]["x"][0] == 1


def test_a_persons_query_says_whether_rows_were_cut_off(tmp_path):
    db = tmp_path / "s.duckdb"
    for rows, limit, is_cut in ((5000, 5000, False), (5000, 4999, True), (10**12, 3, True), (0, 3, False)):
        frame, cut = queries.query_limited(db, f"SELECT i FROM range({rows}) t(i)", limit, 5)
        assert (len(frame), cut, list(frame)) == (min(rows, limit), is_cut, ["i"])
    assert not queries.query_limited(db, "DESCRIBE runs", 100, 5)[1]


def test_an_empty_home_gives_empty_frames(tmp_path):
    db = tmp_path / "none.duckdb"
    for frame in (store.runs_frame(db), store.evals_frame(db, "x"), store.metrics_frame(db, "x", "loss")):
        assert frame.empty and len(frame.columns)


def test_the_schema_is_what_duckdb_made(tmp_path):
    db = tmp_path / "s.duckdb"
    store.query(db, "SELECT 1")
    with duckdb.connect(db, read_only=True) as connection:
        made = connection.execute(
            "SELECT table_name, column_name FROM information_schema.columns WHERE table_name <> 'about_store'"
        ).fetchall()
    assert sorted(made) == sorted((table, column) for table, columns in TABLES.items() for column in columns)


def test_a_store_of_an_older_version_gets_the_newer_tables(tmp_path):
    db = tmp_path / "old.duckdb"
    with store.connect(db, read_only=False) as connection:
        connection.execute("CREATE TABLE runs (run_id VARCHAR)")
    assert store.merges_frame(db, "lab").empty
    with pytest.raises(ValueError, match="nothing_like_it"):
        store.query(db, "SELECT * FROM nothing_like_it")


def copied(finished_run, root, run_id=None):
    """The run in a home of its own, as `cp -r` leaves it."""
    run = RunDir(root / "runs" / (run_id or finished_run.run_id))
    shutil.copytree(finished_run.path, run.path)
    return run


@contextlib.contextmanager
def held(db, read_only, seconds=60.0):
    """Another process with the file open; yields its pid."""
    code = f"import duckdb, time; c = duckdb.connect({str(db)!r}, read_only={read_only}); print(1, flush=True)"
    holder = subprocess.Popen([sys.executable, "-c", f"{code}; time.sleep({seconds})"], stdout=subprocess.PIPE)
    with holder:
        holder.stdout.readline()
        try:
            yield holder.pid
        finally:
            holder.kill()


@pytest.mark.parametrize("read_only", [True, False])
def test_who_holds_the_store_is_said_and_recording_goes_on_where_it_was(finished_run, tmp_path, monkeypatch, read_only):
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path))
    monkeypatch.setattr(storefile, "WAIT_S", 0.3)
    monkeypatch.setattr(storefile, "READ_WAIT_S", 0.3)
    run, db = copied(finished_run, tmp_path), store_path(tmp_path)
    sample = run.phase(1, "sample")
    sample.result.rename(sample.path / "aside")
    note(run, "running")
    record_process(run, os.getpid())
    offsets = store.ingest(db, run, {})
    (sample.path / "aside").rename(sample.result)
    with held(db, read_only) as pid:
        with pytest.raises(store.StoreBusy, match=rf"held open by process {pid} .*duckdb"):
            store.ingest(db, run, offsets)
        assert f"process {pid}" in store.held_by(db)
        opened = AppTest.from_file(str(ROOT / "pages" / "live.py"), default_timeout=30).run()
        assert not opened.exception and not opened.error
        assert f"process {pid}" in opened.warning[0].value
        assert bool(opened.get("bidi_component")) == read_only  # what is there is shown where it can be read
    store.ingest(db, run, offsets)
    assert store.held_by(db) is None
    store.ingest(tmp_path / "once.duckdb", run, {})
    assert same(everything(db), everything(tmp_path / "once.duckdb"))


def note(run, status):
    """Set a run's status, as long ago as a runner would have recorded it since."""
    write_json(run.status, read_json(run.status) | {"status": status, "since": time.time()})
    os.utime(run.status, (time.time() - 60, time.time() - 60))


def same(first, second):
    return [table for table in TABLES if not first[table].equals(second[table])] == []


@pytest.mark.slow
@pytest.mark.parametrize("read_only", [True, False])
def test_a_run_is_only_delayed_by_a_store_held_for_half_a_minute(tmp_path, read_only):
    db = store_path(tmp_path)
    store.query(db, "SELECT 1")
    with held(db, read_only, 30):
        run_id = launch.launch(small_config(), tmp_path)
        time.sleep(30)
    status, error = wait_for_end(tmp_path, run_id)
    assert status == "done", error
    live = everything(db)
    assert list(live["runs"]["status"]) == ["done"] and len(live["outcomes"])
    store.rebuild(tmp_path)
    assert same(live, everything(db))


def under_load(home, seconds):
    """Four writers and eight readers: none meets an error, and all that was reported is recorded; their reports."""
    said = load(home, seconds)
    counts = store.query(store_path(home), "SELECT run_id, count(*) AS n FROM metrics GROUP BY ALL")
    written = {report["run_id"]: report["points"] for report in said["write"]}
    assert len(said["write"]) == 4 and len(said["read"]) == 8
    assert dict(zip(counts["run_id"], counts["n"], strict=True)) == written
    return [report for reports in said.values() for report in reports]


def test_four_runs_write_while_eight_readers_poll(tmp_path):
    assert all(report["waits"] for report in under_load(tmp_path, 15))  # longer than anybody waits


@pytest.mark.slow
def test_four_runs_write_while_eight_readers_poll_for_a_minute(tmp_path):
    reports = under_load(tmp_path, 60)
    put_off = [sentence for report in reports for sentence in report["put_off"]]
    assert all("store is held" in sentence for sentence in put_off)  # a delay, which a slow machine may bring
    assert len(put_off) < 0.05 * sum(len(report["calls"]) for report in reports)


def damaged(db, how):
    """Break a store."""
    if how == "garbage":
        db.write_bytes(os.urandom(100_000))
    elif how == "blocks":
        with db.open("r+b") as file:  # all but the three headers, in which the file still looks well
            file.seek(12_288)
            file.write(bytes(db.stat().st_size - 12_288))
    elif how == "wal":
        db.with_name(db.name + ".wal").write_bytes(store_path(db.parent).read_bytes()[:50_000])
    elif how == "gone":
        db.unlink()
    else:
        os.truncate(db, int(how * db.stat().st_size))


@pytest.mark.parametrize("how", [0, 0.001, 0.3, 0.6, 0.9, "garbage", "blocks", "gone"])
def test_a_damaged_store_makes_itself_anew(finished_run, tmp_path, how):
    run, db = copied(finished_run, tmp_path), store_path(tmp_path)
    store.rebuild(tmp_path)
    before = everything(db)
    damaged(db, how)
    assert same(before, every_table(db))
    damaged(db, how)
    store.ingest(db, run, {})
    assert same(before, everything(db))


def test_one_process_makes_it_anew_while_the_others_wait(finished_run, tmp_path):
    for number in range(6):
        copied(finished_run, tmp_path, f"copy-{number}")
    db = store_path(tmp_path)
    store.rebuild(tmp_path)
    os.truncate(db, db.stat().st_size // 3)
    code = f"import pathlib; from workbench import store; print(len(store.runs_frame(pathlib.Path({str(db)!r}))))"
    asking = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    said = [process.communicate() for process in asking]
    assert [out.strip() for out, _ in said] == ["6"] * 3, said
    assert sum("made anew from 6 runs" in err for _, err in said) == 1, said


def test_runners_go_on_in_a_store_that_was_made_anew_meanwhile(finished_run, tmp_path):
    run, db = copied(finished_run, tmp_path), store_path(tmp_path)
    whole = run.phase(1, "sample").solutions.read_bytes()
    offsets = store.ingest(db, run, {})
    db.unlink()
    run.phase(1, "sample").solutions.write_bytes(whole[: len(whole) // 2])
    store.rebuild(tmp_path)
    run.phase(1, "sample").solutions.write_bytes(whole)
    note(run, "stopped")
    store.ingest(db, run, offsets)
    store.ingest(tmp_path / "once.duckdb", run, {})
    assert same(everything(db), everything(tmp_path / "once.duckdb"))


def test_an_older_store_is_migrated_or_made_anew(finished_run, tmp_path):
    copied(finished_run, tmp_path)
    db = store_path(tmp_path)
    store.rebuild(tmp_path)
    before = everything(db)
    with duckdb.connect(db) as connection:
        connection.execute("DROP TABLE about_store; DROP TABLE notes; ALTER TABLE phases DROP COLUMN cost")
        connection.execute("UPDATE runs SET error = 'as it was'")
    assert list(store.runs_frame(db)["error"]) == ["as it was"]  # the rows are still those, with an empty column more
    assert store.query(db, "SELECT cost FROM phases")["cost"].isna().all()
    with duckdb.connect(db) as connection:
        connection.execute("DROP TABLE about_store; CREATE TABLE m AS FROM metrics; DROP TABLE metrics")
        connection.execute("ALTER TABLE m RENAME TO metrics")  # a table without its key cannot be written as ours are
    assert same(before, everything(db))


def test_a_newer_store_is_left_alone(finished_run, tmp_path):
    run, db = copied(finished_run, tmp_path), store_path(tmp_path)
    store.rebuild(tmp_path)
    with duckdb.connect(db) as connection:
        connection.execute("UPDATE about_store SET version = 99")
    before = db.read_bytes()
    for action in (lambda: store.runs_frame(db), lambda: store.ingest(db, run, {})):
        with pytest.raises(store.StoreBusy, match=r"newer workbench \(schema 99; .*workbench store rebuild"):
            action()
    assert db.read_bytes() == before and store.catch_up(tmp_path) == []
    store.rebuild(tmp_path)
    assert len(store.runs_frame(db)) == 1


def test_what_was_missed_is_caught_up_and_what_is_gone_is_taken_out(finished_run, tmp_path):
    first, second = copied(finished_run, tmp_path, "first"), copied(finished_run, tmp_path, "second")
    db = store_path(tmp_path)
    store.rebuild(tmp_path)
    whole = everything(db)
    assert store.catch_up(tmp_path) == []
    result = first.phase(1, "evaluate").result
    result.rename(first.path / "aside")
    note(first, "running")
    store.rebuild(tmp_path)
    (first.path / "aside").rename(result)
    shutil.copy2(finished_run.status, first.status)
    os.utime(first.status, (0, 0))
    assert store.catch_up(tmp_path) == ["first"]
    assert same(whole, everything(db))
    shutil.rmtree(second.path)
    assert store.catch_up(tmp_path) == ["second"]
    live = everything(db)
    assert list(live["runs"]["run_id"]) == ["first"]
    store.rebuild(tmp_path)
    assert same(live, everything(db))


def test_the_screen_stands_a_deleted_run(finished_run, home):
    for run_id in ("kept", "deleted"):
        note(copied(finished_run, home, run_id), "running")
    store.rebuild(home)
    shutil.rmtree(home / "runs" / "deleted")
    opened = AppTest.from_file(str(ROOT / "pages" / "runs.py"), default_timeout=30).run()
    assert not opened.exception and not opened.error
    assert list(opened.dataframe[0].value["run"]) == ["kept"]


def test_rebuild_adopts_a_run_from_another_machine_and_names_one_it_cannot_read(finished_run, home, caplog):
    run = copied(finished_run, home, "from-afar")
    write_json(run.process, {"pid": 1, "create_time": 0.0, "host": "another-machine"})
    torn = copied(finished_run, home, "torn")
    torn.config.write_text(torn.config.read_text()[:100])
    assert store.rebuild(home) == 1
    assert "torn is left out" in caplog.text
    there = everything(store_path(home))
    for table, column in (("evals", "checkpoint_id"), ("outcomes", "checkpoint_id"), ("checkpoints", "checkpoint_id")):
        assert there[table][column].str.startswith("from-afar/").all(), table
    assert there["checkpoints"]["path"].iloc[1].startswith(str(run.path))
    assert len(store.gains_frame(store_path(home), "from-afar"))
    shutil.rmtree(torn.path)
    opened = AppTest.from_file(str(ROOT / "pages" / "live.py"), default_timeout=30).run()
    assert not opened.exception and "from-afar" in opened.subheader[0].value


def test_a_long_curve_is_drawn_from_few_points_with_its_peaks(tmp_path):
    db = tmp_path / "s.duckdb"
    store.query(db, "SELECT 1")
    with duckdb.connect(db) as connection:
        connection.execute(
            "INSERT INTO metrics SELECT 'r', t, 'sft', 'loss', i, if(i = 77777, 50, if(i = 1234, -50, i / 1e5)),"
            " '2026-01-01' FROM range(100000) r(i), range(1, 3) s(t)"
        )
    frame = store.metrics_frame(db, "r", "loss", buckets=300)
    assert list(frame.groupby("iteration").size()) == [300, 300] and frame["num_values"].sum() == 200_000
    figure = charts.by_step(frame, "loss")
    faint, mean = figure.data[:2]
    assert len(faint.x) <= 600 and len(mean.x) == 300
    assert dict(zip(faint.x, faint.y, strict=True)).items() >= {(77777, 50.0), (1234, -50.0)}
    assert list(faint.x) == sorted(faint.x)
    assert (frame["value"] * frame["num_values"]).sum() == pytest.approx(2 * sum(i / 1e5 for i in range(100_000)), 1e-4)
    every = store.metrics_frame(db, "r", "loss", buckets=None)
    assert (
        len(every) == 200_000 and (every["low"] == every["value"]).all() and (every["step"] == every["high_step"]).all()
    )


def test_a_running_phase_is_read_from_where_it_was_left(tmp_path):
    run = make_run(tmp_path, 1, "running", small_config())
    place = run.phase(1, "sft")
    write_json(place.job, {})
    emit, once = event_log(place.events), tmp_path / "once.duckdb"
    db, offsets = store_path(tmp_path), {}
    for step in range(30):
        if step % 12 == 0:
            emit("started", since=time.time() - 1)
        emit("loss", 1 / (1 + step), step=step)
        emit("progress", step=step, total=30, unit="steps")
        if step % 4 == 1:
            with place.events.open("ab") as file:
                file.write(b'{"ts": 1, "na')  # torn by a kill
        before = dict(offsets)
        offsets = store.ingest(db, run, offsets)
        assert len(read_run(run, offsets).rows["metrics"]) == 0
        assert len(read_run(run, before).rows["metrics"]) == 1
    store.ingest(once, run, {})
    first, second = everything(db), everything(once)
    assert same(first, second) and len(first["metrics"]) == 30
    assert first["phases"]["rate"][0] > 0 and '"attempts": 3' in first["phases"]["cost"][0]
