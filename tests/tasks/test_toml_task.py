"""Tasks that a person describes in a TOML file."""

import json

import pytest

from tests.conftest import small_config, wait_for_end
from workbench import launch, store
from workbench.jobs import TaskSource
from workbench.rundir import store_path
from workbench.tasks import load_questions


def described(folder, toml, **files):
    """A task file and its rows."""
    for name, rows in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "mine.toml").write_text(toml)
    return TaskSource(task=str(folder / "mine.toml"))


def test_fields_answers_and_splits(tmp_path):
    toml = 'path = "{split}.jsonl"\nquestion = "q"\nanswer = "a"\nformat = "number"\nsolution = "why"'
    rows = [{"q": "1 + 1?", "a": 2, "why": "Two."}, {"q": "2 + 2?", "a": "2 + 2 = 4\n#### 4"}, {"q": "?", "a": None}]
    source = described(tmp_path, toml, train=rows, test=rows[:1])
    task = load_questions(source, "train")
    assert (task.name, task.answer_format) == ("mine", "number")
    assert [(q.text, q.reference, q.solution) for q in task.questions] == [
        ("1 + 1?", "2", "Two."),
        ("2 + 2?", "4", "2 + 2 = 4\nThe answer is 4."),
    ]
    assert "row 3 left out: a is empty" in task.problems[0]
    assert len(load_questions(source, "test").questions) == 1
    with pytest.raises(ValueError, match="has no validation split, only train, test"):
        load_questions(source, "validation")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"q": None, "a": "5"}, "q is empty"),
        ({"q": "Why?", "a": "so it is \n#### "}, "ends without an answer"),
        ({"q": "Why?", "a": r"so $\boxed{}$"}, "ends without an answer"),
    ],
)
def test_a_row_without_question_or_answer_is_left_out(tmp_path, row, said):
    toml = 'path = "test.jsonl"\nquestion = "q"\nanswer = "a"\nformat = "math"'
    task = load_questions(described(tmp_path, toml, test=[row, {"q": "?", "a": r"\boxed{2}"}]), "test")
    assert [q.reference for q in task.questions] == ["2"] and said in task.problems[0]


@pytest.mark.parametrize(
    ("options", "answer", "said"),
    [
        (["x", "y"], 7, "answer '7' is no option: A-B, 0-1 or an option's text"),
        (["x", "y"], -1, "answer '-1' is no option"),
        (["x", "y"], 0.5, "answer '0.5' is no option"),
        (["x", "y"], "C", "answer 'C' is no option"),
        (["x", "y"], True, "answer 'True' is no option"),
        (list("abcdefghijkl"), 11, "12 options, and at most 10 have a letter (A-J)"),
        (None, "A", "o is empty"),
    ],
)
def test_an_answer_that_is_no_option_is_left_out(tmp_path, options, answer, said):
    toml = 'path = "test.jsonl"\nquestion = "q"\nanswer = "a"\nformat = "choice"\noptions = "o"'
    rows = [{"q": "Which?", "a": answer, "o": options}, {"q": "Which?", "a": "A", "o": ["x", "y"]}]
    task = load_questions(described(tmp_path, toml, test=rows), "test")
    assert len(task.questions) == 1 and said in task.problems[0]


@pytest.mark.parametrize(
    ("options", "answer", "text", "letter"),
    [
        (["x", "y"], 1, "Which? (A) x (B) y", "B"),
        (["x", "y"], "y", "Which? (A) x (B) y", "B"),
        (["x", "y"], 1.0, "Which? (A) x (B) y", "B"),
        (["x", "y"], "0", "Which? (A) x (B) y", "A"),
        (["x", "y"], "(B)", "Which? (A) x (B) y", "B"),
        (["x", "y"], "b.", "Which? (A) x (B) y", "B"),
        (["1", "0"], "0", "Which? (A) 1 (B) 0", "B"),
        (["1", "0"], 0, "Which? (A) 1 (B) 0", "A"),
        ([12, 16], 16, "Which? (A) 12 (B) 16", "B"),
        ({"a": "x", "b": "y"}, "a", "Which? (A) x (B) y", "A"),
        ("A) x B) y", "B", "Which? A) x B) y", "B"),
        ("A) x B) y", 1, "Which? A) x B) y", "B"),
    ],
)
def test_options_in_every_form(tmp_path, options, answer, text, letter):
    toml = 'path = "test.jsonl"\nquestion = "q"\nanswer = "a"\nformat = "choice"\noptions = "o"'
    source = described(tmp_path, toml, test=[{"q": "Which?", "a": answer, "o": options}])
    (question,) = load_questions(source, "test").questions
    assert (question.text, question.reference) == (text, letter)


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        ('question = "q"\nanswer = "a"\nformat = "number"', "path: Field required; the keys of a task file are path, "),
        ('path = "x.jsonl"\nquestion = "q"\nanswer = "a"\nformat = "maths"', "format: Input should be 'number'"),
        ('path = "x.jsonl"\nquestion = "q"\nanswer = "a"\nformat = "math"', "no file .*x.jsonl"),
        ("path = ", "is no TOML file"),
        ('path = "t.jsonl"\nquestion = "q"\nanswer = "a"\nformat = "math"\noptions = "o"', "options are for format"),
    ],
)
def test_a_wrong_task_file_is_one_sentence(tmp_path, toml, said):
    with pytest.raises(ValueError, match=said):
        load_questions(described(tmp_path, toml), "test")


def test_a_described_task_is_trained_on_and_evaluated(home, tmp_path):
    rows = [{"q": f"{n} birds and {n + 1} more?", "a": str(2 * n + 1)} for n in range(40)]
    toml = 'path = "{split}.jsonl"\nquestion = "q"\nanswer = "a"\nformat = "number"'
    source = described(tmp_path, toml, train=rows[:30], test=rows[30:])
    config = small_config(
        train_task=source.task, eval_tasks=("pocket_words",), iterations=1, **{"analyze.enabled": False}
    )
    run_id = launch.launch(config, home)
    wait_for_end(home, run_id)  # the pocket model may solve none of these, which ends the run after sampling
    scores = store.query(store_path(home), "SELECT task, num_questions FROM evals WHERE kind = 'base' ORDER BY task")
    assert list(scores.itertuples(index=False, name=None)) == [("mine", 10), ("pocket_words", 16)]
