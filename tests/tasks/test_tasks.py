"""Reading tasks: the real files, broken rows, and what a wrong name is answered with."""

import json
from dataclasses import replace

import pytest

from tests.conftest import DATASETS, needs_datasets, small_config
from workbench import checks
from workbench.estimate import facts_of
from workbench.jobs import TaskSource
from workbench.tasks import TASKS, check_source, check_worked, load_questions, recorded_rows


@needs_datasets
@pytest.mark.parametrize(
    ("task", "split", "count", "reference"),
    [
        ("gsm8k", "train", 7473, "72"), ("gsm8k", "test", 1319, "18"), ("math", "train", 7498, None),
        ("math", "test", 5000, "2"), ("math500", "test", 500, r"\left( 3, \frac{\pi}{2} \right)"),
        ("mawps", "test", 2065, "43"), ("sat_math", "test", 32, "A"), ("svamp", "test", 1000, "145"),
        ("asdiv", "test", 2215, "9"), ("mathqa", "test", 1000, "A"), ("mmlu_stem", "test", 3018, "C"),
    ],
)  # fmt: skip
def test_real_files_are_read_whole(task, split, count, reference):
    loaded = load_questions(TaskSource(task=task, datasets=str(DATASETS)), split)
    assert len(loaded.questions) == count
    empty_boxes = 2 if (task, split) == ("math", "train") else 0
    assert len(loaded.problems) == loaded.num_rows - count == empty_boxes
    assert reference is None or loaded.questions[0].reference == reference
    assert len({question.question_id for question in loaded.questions}) == count


@pytest.mark.parametrize(
    "options", ["a ) 1,5 , b ) 2", "a ) a ) 1,5 , b ) b ) 2", "['a ) 1,5', 'b ) 2']", "['a ) a ) 1,5', 'b ) b ) 2']"]
)
def test_mathqa_options_in_all_their_spellings(options):
    row = {"problem": "which ?", "options": options, "correct": "b"}
    assert TASKS["mathqa"].read_row(row).text == "which ? (A) 1,5 (B) 2"


@needs_datasets
def test_a_directory_named_like_a_task_is_read_as_that_task():
    loaded = load_questions(TaskSource(task=str(DATASETS / "gsm8k")), "train")
    assert (loaded.name, loaded.answer_format, len(loaded.questions)) == ("gsm8k", "number", 7473)
    assert "<<" not in loaded.questions[0].solution


def test_broken_rows_are_named_and_the_rest_is_used(tmp_path):
    file = tmp_path / "mine.jsonl"
    rows = [
        '{"question": "1+1?", "answer": "2"}',
        "not json",
        '{"question": "2+2?"}',
        '{"question": "", "answer": "1"}',
    ]
    file.write_text("\n".join([*rows, '{"question": "3+3?", "answer": 6}']) + "\n")
    loaded = load_questions(TaskSource(task=str(file)), "test")
    assert [q.reference for q in loaded.questions] == ["2", "6"]
    assert (loaded.name, loaded.answer_format, loaded.num_rows) == ("mine", "number", 5)
    assert [problem.split(": ", 1)[1] for problem in loaded.problems] == [
        "row 2 left out: not a JSON object",
        "row 3 left out: no answer or reference or target",
        "row 4 left out: no question or problem or input or prompt",
    ]


@pytest.mark.parametrize(
    ("answers", "answer_format"), [(["1", "2.5"], "number"), (["A", "b"], "choice"), (["1", r"\pi"], "math")]
)
def test_the_answer_format_of_a_file_is_guessed(tmp_path, answers, answer_format):
    file = tmp_path / "f.jsonl"
    file.write_text("".join(json.dumps({"problem": "?", "target": a}) + "\n" for a in answers))
    assert load_questions(TaskSource(task=str(file)), "test").answer_format == answer_format


@pytest.mark.parametrize(
    ("task", "split", "said"),
    [
        ("gsm9k", "test", "no task 'gsm9k', and no such file; known are: gsm8k, math,"),
        ("mathqa", "train", "task mathqa has no train split, only test"),
        ("sat_math", "test", "put them at .*sat_math/test.jsonl"),
    ],
)
def test_a_wrong_name_is_one_sentence(home, task, split, said):
    with pytest.raises(ValueError, match=said):
        check_source(TaskSource(task=task), split)


def test_an_empty_file_and_a_lone_train_file_are_refused(tmp_path):
    file = tmp_path / "empty.jsonl"
    file.write_text("")
    with pytest.raises(ValueError, match="has no usable row"):
        load_questions(TaskSource(task=str(file)), "test")
    with pytest.raises(ValueError, match="a train task is a directory"):
        load_questions(TaskSource(task=str(file)), "train")


@pytest.fixture
def hub_math(tmp_path, monkeypatch):
    """MATH from a set with the layout of its source on the hub, on this disk, with as many rows as one says."""

    def made(train, test):
        hub = tmp_path / f"hub-{train}-{test}"
        (hub / "data").mkdir(parents=True)
        for split, count in (("train", train), ("test", test)):
            rows = [{"problem": f"{n}+1?", "level": "1", "solution": f"\\boxed{{{n + 1}}}"} for n in range(count)]
            (hub / "data" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        files = "".join(f"  - {{split: {split}, path: data/{split}.jsonl}}\n" for split in ("train", "test"))
        other = "- config_name: algebra\n  data_files: data/test.jsonl\n"
        (hub / "README.md").write_text(
            f"---\nconfigs:\n{other}- config_name: default\n  default: true\n  data_files:\n{files}---\n"
        )
        monkeypatch.setitem(TASKS, "math", replace(TASKS["math"], hub=f"{hub}:default"))

    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    return made


def test_math_from_the_hub_has_the_papers_split(home, hub_math):
    hub_math(7500, 5000)
    assert [len(load_questions(TaskSource(task="math"), split).questions) for split in ("train", "test")] == [
        7500,
        5000,
    ]


@pytest.mark.parametrize(
    ("split", "said"), [("train", "12,000 rows, and 7,500 are"), ("test", "500 rows, and 5,000 are")]
)
def test_a_hub_set_of_other_rows_is_refused_with_both_counts(home, hub_math, split, said):
    hub_math(12000, 500)
    with pytest.raises(
        ValueError, match=f"task math, {split}: .* has {said} recorded.* at <datasets>/math/{split}.jsonl"
    ):
        load_questions(TaskSource(task="math"), split)
    (home / "datasets" / "math").mkdir(parents=True)
    (home / "datasets" / "math" / f"{split}.jsonl").write_text('{"problem": "1+1?", "solution": "\\\\boxed{2}"}\n')
    assert load_questions(TaskSource(task="math"), split).num_rows == 1


def test_every_split_that_comes_from_the_hub_has_its_rows_recorded():
    splits = {(name, split) for name, task in TASKS.items() if task.hub for split in task.splits}
    assert {(name, split): recorded_rows(name, split) for name, split in splits} == {
        ("gsm8k", "train"): 7473, ("gsm8k", "test"): 1319, ("math", "train"): 7500, ("math", "test"): 5000,
        ("math500", "test"): 500, ("svamp", "train"): 700, ("svamp", "test"): 300,
    }  # fmt: skip


def test_a_file_of_a_named_task_with_other_rows_is_used_and_said(home):
    folder = home / "datasets" / "svamp"
    folder.mkdir(parents=True)
    row = {"Body": "Ida has 8 pens", "Question": "How many?", "Answer": 8.0}
    (folder / "test.jsonl").write_text(f"{json.dumps(row)}\n" * 3)
    (said,) = checks.remarks(small_config(eval_tasks=["svamp", "pocket_words"]))
    assert said == "svamp, test: the file here has 3 rows, ChilleD/SVAMP has 300: these are not the same questions"
    assert facts_of(TaskSource(task="svamp")).test == 3
    for count in (300, 1000):  # the hub's part, and the whole
        (folder / "test.jsonl").write_text(f"{json.dumps(row)}\n" * count)
        assert checks.remarks(small_config(eval_tasks=["svamp"])) == []


def test_a_hub_task_is_not_fetched_by_a_check(home):
    assert check_source(TaskSource(task="gsm8k"), "train") is None


@needs_datasets
def test_worked_solutions_come_from_the_train_split_or_else_from_the_test_split():
    def split_of(task):
        return check_worked(TaskSource(task=task, datasets=str(DATASETS)))

    assert (split_of("gsm8k"), split_of("math"), split_of("mathqa")) == ("train", "train", "test")
    first = load_questions(TaskSource(task="mathqa", datasets=str(DATASETS)), "test").questions[0]
    assert first.solution.startswith("log 8 x") and first.solution.endswith("answer : a\nThe answer is (A).")
    with pytest.raises(ValueError, match="asdiv has no worked solutions; gsm8k, math and mathqa have them"):
        split_of("asdiv")
    with pytest.raises(ValueError, match="no task 'gsm9k'"):
        split_of("gsm9k")


def test_a_task_without_worked_solutions_is_refused_as_a_reasoning_set(tmp_path):
    file = tmp_path / "bare.jsonl"
    file.write_text('{"question": "1+1?", "answer": "2"}\n')
    with pytest.raises(ValueError, match="bare has no worked solutions"):
        check_worked(TaskSource(task=str(file)))
    file.write_text('{"question": "1+1?", "answer": "2", "solution": "1 + 1 = 2."}\n')
    assert check_worked(TaskSource(task=str(file))) == "test"
