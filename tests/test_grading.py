"""`workbench grade`, and grading a run again."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import DATASETS, ROOT, needs_datasets, small_config, wait_for_end
from tests.test_store import everything
from workbench import evals, launch, solutions, store
from workbench.grading import disagreements, grade_file
from workbench.jobs import TaskSource
from workbench.regrade import formats, recorded, regrade
from workbench.rundir import RunDir, find_run, read_json, store_path, write_json
from workbench.tasks import draw_questions, load_questions


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_rows_are_graded_each_by_its_own_kind_and_other_fields_are_kept(tmp_path):
    rows = [
        {"reference": "18", "solution": "So 9 * 2 = 18 dollars.", "id": 7},
        {"reference": "She has 9.\n#### 1,018", "solution": "The answer is $1018.00"},
        {"reference": "B", "solution": "The answer is (B). 12"},
        {"reference": r"Thus \boxed{\frac{1}{2}}", "solution": r"It is \boxed{0.5}"},
        {"reference": r"[0, \infty)", "solution": r"\boxed{(0,\infty)}"},
        {"reference": 5, "solution": "First 5 and then we take"},
    ]
    out = tmp_path / "out.jsonl"
    assert grade_file(write(tmp_path / "in.jsonl", rows), out, "auto") == {"rows": 6, "right": 4, "without_answer": 1}
    graded = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["is_correct"] for row in graded] == [True, True, True, True, False, False]
    assert [row["rule"] for row in graded] == ["last number", "stated", "stated", "boxed", "boxed", "none"]
    assert graded[0]["id"] == 7 and graded[0]["answer"] == "18" and graded[5]["answer"] is None


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"reference": 3}', "line 1: no field 'solution'; the row has reference"),
        ('{"reference": [3], "solution": ""}', r"line 1: reference must be a text or a number, got \[3\]"),
        ("[1]", "line 1: a row is an object"),
        ("{", "line 1: no JSON"),
        ("", "has no rows"),
    ],
)
def test_a_bad_line_is_named_and_nothing_is_written(tmp_path, line, said):
    (tmp_path / "in.jsonl").write_text(line + "\n")
    with pytest.raises(ValueError, match=said):
        grade_file(tmp_path / "in.jsonl", tmp_path / "out.jsonl", "auto")
    assert not (tmp_path / "out.jsonl").exists()


def test_other_line_separators_and_a_byte_order_mark_are_read_as_our_own_output_writes_them(tmp_path):
    file, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    row = json.dumps({"reference": "5", "solution": "a\u2028b\u0085c The answer is 5."}, ensure_ascii=False)
    file.write_text(f"\ufeff{row}\r\n{row}\n", encoding="utf-8")
    assert grade_file(file, out, "auto")["right"] == 2
    assert grade_file(out, None, "auto")["right"] == 2


@needs_datasets
@pytest.mark.parametrize(("task", "split", "field"), [("gsm8k", "train", "answer"), ("math", "test", "solution")])
def test_worked_solutions_of_real_rows_are_right_and_their_neighbours_are_not(tmp_path, task, split, field):
    lines = (DATASETS / task / f"{split}.jsonl").read_text().splitlines()[:400]
    texts = [json.loads(line)[field] for line in lines]
    mine = [{"reference": text, "solution": text} for text in texts]
    other = [{"reference": a, "solution": b} for a, b in zip(texts, texts[1:], strict=False)]
    assert grade_file(write(tmp_path / "mine.jsonl", mine), None, "auto")["right"] == 400
    assert grade_file(write(tmp_path / "other.jsonl", other), None, "auto")["right"] < 0.05 * 400


@pytest.fixture
def misgraded(finished_run, home):
    """A copy of the finished run as a worse grader had left it: one right answer of the base graded wrong."""
    run = RunDir(home / "runs" / finished_run.run_id)
    shutil.copytree(finished_run.path, run.path)
    place = run.phase(0, "evaluate")
    rows = [json.loads(line) for line in place.outcomes.read_text().splitlines()]
    victim = next(row for row in rows if row["is_correct"] and row["sample"] == 0)
    victim |= {"is_correct": False, "answer": None}
    write(place.outcomes, rows)
    sampled = run.phase(1, "sample")
    drawn = [json.loads(line) for line in sampled.solutions.read_text().splitlines()]
    drawn[0] |= {"is_correct": not drawn[0]["is_correct"]}
    write(sampled.solutions, drawn)
    store.rebuild(home)
    return run, victim


def test_grading_again_corrects_scores_records_what_changed_and_keeps_the_texts(misgraded, finished_run, home):
    run, victim = misgraded
    before = (run.phase(0, "evaluate").outcomes.read_bytes(), run.phase(1, "sample").solutions.read_bytes())
    found = regrade(home, run.run_id)
    assert found["changed"] == 2
    assert [(s["kind"], s["task"]) for s in found["scores"]] == [("base", victim["task"])]
    assert before == (run.phase(0, "evaluate").outcomes.read_bytes(), run.phase(1, "sample").solutions.read_bytes())
    db, first = store_path(home), store_path(finished_run.path.parents[1])
    for table in ("evals", "outcomes", "solutions", "pass_at_k"):
        cut = "* EXCLUDE (ts)" if table in ("evals",) else "*"
        mine, whole = (store.query(d, f"SELECT {cut} FROM {table} ORDER BY ALL") for d in (db, first))
        assert mine.equals(whole), table
    changes = store.query(db, "SELECT * FROM regrades ORDER BY phase")
    assert list(changes["was_correct"])[0] == False  # noqa: E712
    assert changes["grader"].str.startswith("0.").all()
    live = everything(db)
    store.rebuild(home)
    assert all(frame.equals(live[table]) for table, frame in everything(db).items())
    assert regrade(home, run.run_id)["changed"] == 0
    assert len(recorded(run.phase(0, "evaluate"))) == len(before[0].splitlines())


def test_a_run_made_before_formats_were_recorded_is_graded_again(misgraded, home):
    run, _ = misgraded
    for place in (run.phase(0, "evaluate"), run.phase(1, "sample")):
        result = read_json(place.result)
        before = result["summary"].pop("formats")
        write_json(place.result, result)
        assert formats(place) == before
    assert regrade(home, run.run_id)["changed"] == 2


def test_the_audit_shows_where_two_graders_differ(finished_run):
    db = store_path(finished_run.path.parents[1])
    checkpoint = finished_run.checkpoint_id(0, "base")
    formats = solutions.formats(db, finished_run.run_id)
    assert formats["pocket_choice"] == "choice" and formats["pocket_steps"] == "number"
    _, rows = solutions.answered(db, checkpoint, "pocket_steps", "all", "", 50)
    whole = rows[rows["finished"]].to_dict("records")
    assert len(whole) > 10 and disagreements(whole, formats) == []
    whole[3]["is_correct"] = not whole[3]["is_correct"]
    assert [case["text"] for case in disagreements(whole, formats)] == [whole[3]["text"]]


def test_two_checkpoints_are_compared_on_the_same_questions(finished_run):
    db = store_path(finished_run.path.parents[1])
    base, merged = finished_run.checkpoint_id(0, "base"), finished_run.checkpoint_id(1, "merged")
    table = evals.compared(db, base, merged).set_index(["scope", "measure"])
    steps = table.loc[("pocket_steps", "accuracy")]
    scores = evals.accuracy_frame(db, [finished_run.run_id]).set_index(["kind", "task"])["accuracy"]
    assert steps["difference"] == pytest.approx(scores["merged", "pocket_steps"] - scores["base", "pocket_steps"])
    assert table.loc[("all OOD", "accuracy")]["num_questions"] == 3 * 16
    assert {"pass@2", "pass@4"} <= {measure for _, measure in table.index}
    backwards = evals.compared(db, merged, base).set_index(["scope", "measure"])
    assert (backwards["difference"] == -table["difference"]).all()
    flips = solutions.flipped(db, base, merged, "pocket_steps")
    gained = int(flips["gained"].sum())
    assert (2 * gained - len(flips)) / 16 == pytest.approx(steps["difference"])
    assert evals.compared(db, base, base).empty


def test_contaminated_questions_are_found_by_the_run_and_scores_are_shown_without_them(home):
    """A task whose test set holds three train questions that are drawn, three that are not, and a similar one."""
    task = home / "leaky"
    task.mkdir()
    tasks = ROOT / "data/pocket/tasks"
    train = (tasks / "pocket_steps.train.jsonl").read_text().splitlines()[:60]
    test = (tasks / "pocket_steps.test.jsonl").read_text().splitlines()[:9]
    (task / "train.jsonl").write_text("\n".join(train) + "\n")
    config = small_config(train_task=str(task), eval_tasks=(), **{"analyze.enabled": False})
    questions = load_questions(TaskSource(task=str(task)), "train").questions
    drawn, _ = draw_questions(questions, config.num_questions, config.sample, config.seed)
    numbers = [int(question.question_id.removeprefix("train-")) for question in drawn]
    left = sorted(set(range(60)) - set(numbers))
    row = json.loads(train[numbers[3]])
    similar = json.dumps(row | {"question": f"{row['question']} And how many has Eva got?"})
    leaked = [*(train[number] for number in numbers[:3]), *(train[number] for number in left[:3]), similar]
    (task / "test.jsonl").write_text("\n".join(leaked + test) + "\n")
    run_id = launch.launch(config, home)
    assert wait_for_end(home, run_id) == ("done", None)
    frame = evals.accuracy_frame(store_path(home), [run_id])
    assert set(frame["num_seen"]) == {3}
    outcomes = store.query(
        store_path(home),
        "SELECT is_correct FROM outcomes WHERE sample = 0 AND checkpoint_id = ? AND NOT regexp_matches(question_id, ?)",
        [find_run(home, run_id).checkpoint_id(0, "base"), "^test-[0-2]$"],
    )
    assert len(outcomes) == 13
    assert frame.loc[frame["kind"] == "base", "clean_accuracy"].item() == pytest.approx(outcomes["is_correct"].mean())
    notes = evals.alerts_frame(store_path(home), [run_id])
    assert notes["text"].str.contains("seen in training: 3 .*; only similar to a text of it: 1$").any()


@needs_datasets
def test_a_task_without_a_train_split_is_searched_in_its_test_split():
    words = [Path(sys.executable).with_name("workbench"), "contamination", "mawps", "asdiv", "--datasets", DATASETS]
    done = subprocess.run(map(str, words), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "mawps has no train split here; its test split is searched" in done.stderr
    assert re.search(r"mawps: 2065 test questions.*asdiv +│ 2215 +│ 240 ", done.stdout, re.DOTALL)
    wrong = subprocess.run([*map(str, words[:2]), "no_task", "asdiv"], capture_output=True, text=True)
    assert wrong.returncode == 2 and "no task 'no_task'" in wrong.stderr and "Traceback" not in wrong.stderr
