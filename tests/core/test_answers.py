"""Finding and grading final answers."""

import time

import pytest

from tests.conftest import DATASETS, needs_datasets
from workbench.core import symbolic
from workbench.core.answers import as_number, extract_answer, grade, is_correct, last_boxed
from workbench.jobs import TaskSource
from workbench.tasks import load_questions


@pytest.mark.parametrize(
    ("text", "answer_format", "answer"),
    [
        (r"so \boxed{\frac{1}{2}} is it", "math", r"\frac{1}{2}"),
        (r"first \boxed{3}, then \boxed{4}", "number", "4"),
        (r"cut off \boxed{\frac{1}{2", "math", None),
        ("3 + 4 = 7\n#### 7", "number", "7"),
        ("It costs 3 * 4 = 12 dollars. The answer is $12.50.", "number", "$12.50"),
        ("The answer is 1,234 apples. Next question: 5", "number", "1,234 apples"),
        ("First 14 + 9 = 23. Then 23 - 5 = 18.", "number", "18"),
        ("First 14 + 9 = 23. Then we take the", "number", None),
        ("no digits at all.", "number", None),
        ("44 - 38 = 6. (A) 3 no. (B) 6 yes. The answer is (B).", "choice", "B"),
        ("The answer is B. 12", "choice", "B"),
        (r"\boxed{\text{C}}", "choice", "C"),
        ("Answer: d", "choice", "D"),
        ("It must be (A), no, (C)", "choice", "C"),
        ("I do not know", "choice", None),
        ("The answer is Mrs. Hilt.", "math", "Mrs. Hilt"),
        ("The answer is 3:30 p.m.", "math", "3:30 p.m"),
        ("The answer is 7 or 9.", "number", None),
        ("The answer is (3, 4).", "number", None),
        ("The answer is 9 + 9 = 18 per 2 days.", "number", "18"),
        ("So he walks 2 1/2.", "number", "2 1/2"),
        ("It gives .5.", "number", ".5"),
        ("That leaves 10{,}000.", "number", "10{,}000"),
        ("A total of **18**", "number", "18"),
        ("A range of 3-5.", "number", "5"),
        ("The answer is a bit unclear.", "choice", None),
        ("The answer is b because it fits", "choice", "B"),
        ("Therefore, the correct choice is C.", "choice", "C"),
        ("**B) 12**", "choice", "B"),
        ("(A) 3 no. (B) 4 no. (C) 5 yes.", "choice", "C"),
        ("(B) is correct because (A) is too small.", "choice", "B"),
        ("(A) is incorrect. (C) is right. (D) is wrong.", "choice", "C"),
        ("Option B is the correct answer.", "choice", "B"),
        ("So I choose option C.", "choice", "C"),
        ("Statement I is correct.", "choice", None),
        ("The answer is not 5.", "number", None),
        ("The answer isn't $5, for 2 + 4 = 6.", "number", None),
        ("The answer is not possible.", "text", "not possible"),
    ],
)
def test_extraction(text, answer_format, answer):
    assert extract_answer(text, answer_format)[0] == answer


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("10,000", 10000), ("10{,}000", 10000), (r"10\,000", 10000), (r"58,\!500", 58500), ("$1,234.50", 1234.5),
        ("-7", -7), ("−7", -7), ("43.0", 43), ("25%", 25), (r"25\%", 25), ("9 apples", 9), (r"5\text{ cm}", 5),
        (r"90^\circ", 90), ("3/8", 0.375), (r"\frac{3}{8}", 0.375), (r"-\dfrac{1}{2}", -0.5), ("1 1/2", 1.5),
        (r"2\frac{1}{4}", 2.25), ("-(1/4)", -0.25), (".5", 0.5),
        ("5 million", 5_000_000), ("1e3", 1000), (r"-\frac{-1}{2}", 0.5), ("3 pi", None), ("9" * 6000, None),
        ("3:30", None), ("5:6", None), ("x", None), ("2x", None), ("1/0", None), ("(1,2)", None), ("204_5", None),
        ("12 and 13", None), ("", None), ("two", None),
    ],
)  # fmt: skip
def test_numbers(text, value):
    assert as_number(text) == value


@pytest.mark.parametrize(
    ("answer", "reference", "answer_format", "right"),
    [
        ("18.0", "18", "number", True), ("18", "180", "number", False), ("1.33333", "1.333333", "number", True),
        ("1000", "1001", "number", False), (r"\frac{2}{4}", "0.5", "math", True), ("b", "B", "choice", True),
        (r"x^2+2x+1", r"(x+1)^2", "math", True),
        (r"(3,\frac{\pi}{2})", r"\left( 3, \frac{\pi}{2} \right)", "math", True),
        (r"2 - \frac\pi4", r"2 - \frac{\pi}{4}", "math", True),
        (r"\frac \pi4 - \sqrt3", r"\frac \pi4 - \sqrt2", "math", False),
        (r"2 + \frac ab", r"2 + \frac{a}{b}", "math", True), (r"2 + \frac ab", "2", "math", False),
        (r"\sqrt\pi + 1", r"1 + \sqrt{\pi}", "math", True), (r"\frac\pi{4}", r"\frac{\pi}{5}", "math", False),
        (r"[0,1)", r"[0,1]", "math", False), (r"(0,1)", r"[0,1]", "math", False), ("purple", "Purple", "math", True),
        ("123.46", "123.45", "number", False), ("1000.05", "1000", "number", False),
        ("5 million", "5", "number", False),
        ("3:30 p.m.", "3:30 a.m.", "math", False), (r"3:30\text{ PM}", "3:30 p.m.", "math", True),
        ("5:03 p.m.", "17:03", "math", True), ("17:03", "5:03 a.m.", "math", False), ("3:30", "15:30", "math", False),
        ("12:05 a.m.", "0:05", "math", True), ("3:30", "3:30 p.m.", "math", True),
        ("204_6", "204_5", "math", False), ("204_{5}", "204_5", "math", True),
        (r"\{1,2\}", r"\{2,1\}", "math", True), ("3:30 p.m.", "3:30 p.m.", "math", True), ("3:30", "3", "math", False),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1\\3\end{pmatrix}", "math", False),
    ],
)  # fmt: skip
def test_comparison(answer, reference, answer_format, right):
    assert is_correct(answer, reference, answer_format) is right


def test_boxes_may_nest_and_lack_braces():
    assert last_boxed(r"\boxed{\text{a }\{1\}}") == r"\text{a }\{1\}"
    assert last_boxed(r"thus \boxed 2.") == "2"


def test_a_hostile_expression_costs_its_time_limit_and_no_more(monkeypatch):
    monkeypatch.setattr(symbolic, "TIMEOUT_S", 1.0)
    assert symbolic.symbolically_equal("x + x", "2x")
    began = time.monotonic()
    assert not symbolic.symbolically_equal("9^{9^{9^{9^{9}}}}", "9^{9^{9^{9}}} + 1")
    assert time.monotonic() - began < 10
    assert symbolic.symbolically_equal("y + y", "2y")


@pytest.mark.parametrize("text", ["9" * 6000, "1 " * 9000, "\n" * 9000, "(A) " * 9000, "\\boxed{" * 3000, "1/" * 9000])
def test_rambling_is_graded_at_once(text):
    began = time.monotonic()
    for answer_format in ("number", "math", "choice"):
        assert not grade(f"The answer is {text}.", "5", answer_format).is_correct
        assert not grade(f"{text}.", "5", answer_format).is_correct
    assert time.monotonic() - began < 2


@needs_datasets
@pytest.mark.parametrize("task", ["gsm8k", "math", "mawps", "svamp", "asdiv", "sat_math", "mathqa", "mmlu_stem"])
def test_reference_solutions_are_right_and_changed_answers_wrong(task):
    loaded = load_questions(TaskSource(task=task, datasets=str(DATASETS)), "test")
    wrong = [q for q in loaded.questions if not grade(worked(q), q.reference, loaded.answer_format).is_correct]
    assert not wrong
    other = {"choice": lambda r: "B" if r == "A" else "A"}.get(loaded.answer_format, lambda r: "7" + r)
    fooled = [q for q in loaded.questions[:300] if is_correct(other(q.reference), q.reference, loaded.answer_format)]
    assert not fooled


def worked(question):
    """A reference solution, or a sentence with the answer where the data set has none."""
    return question.solution or f"We think about it. The answer is {question.reference}."
