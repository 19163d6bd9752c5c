"""The store is an index: what the run directories say, whoever writes and whoever holds the file."""

import shutil
import subprocess
import sys
import threading
import time

import duckdb
import pytest

from workbench import store
from workbench.ingest import TABLES, read_run
from workbench.rundir import RunDir, store_path

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
    "importance": "run_id, iteration, text_set, layer, module",
    "weight_change": "run_id, checkpoint_id, compared_to, layer, module",
    "superficiality": "run_id, checkpoint_id, compared_to, text_set",
}

OF_LABS = ("labs", "merge_evals", "merge_outcomes")
"""Empty for a run nobody opened a lab on; tests/test_lab.py has them."""


def everything(db):
    return {table: store.query(db, f"SELECT * FROM {table} ORDER BY {KEYS[table]}") for table in TABLES}


def test_rebuild_gives_what_the_runner_recorded(finished_run, tmp_path):
    root = finished_run.path.parents[1]
    live = everything(store_path(root))
    assert store.rebuild(root) == 1
    again = everything(store_path(root))
    for table, frame in live.items():
        assert len(frame) > 0 or table in OF_LABS, table
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
        " min(length(text)) AS shortest FROM outcomes GROUP BY ALL) o USING (checkpoint_id, task)",
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


def test_an_empty_home_gives_empty_frames(tmp_path):
    db = tmp_path / "none.duckdb"
    for frame in (store.runs_frame(db), store.evals_frame(db, "x"), store.metrics_frame(db, "x", "loss")):
        assert frame.empty and len(frame.columns)


def test_the_schema_is_what_duckdb_made(tmp_path):
    db = tmp_path / "s.duckdb"
    store.query(db, "SELECT 1")
    with duckdb.connect(db, read_only=True) as connection:
        made = connection.execute("SELECT table_name, column_name FROM information_schema.columns").fetchall()
    assert sorted(made) == sorted((table, column) for table, columns in TABLES.items() for column in columns)


def test_a_store_of_an_older_version_gets_the_newer_tables(tmp_path):
    db = tmp_path / "old.duckdb"
    with store.connect(db, read_only=False) as connection:
        connection.execute("CREATE TABLE runs (run_id VARCHAR)")
    assert store.merges_frame(db, "lab").empty
    with pytest.raises(ValueError, match="nothing_like_it"):
        store.query(db, "SELECT * FROM nothing_like_it")
