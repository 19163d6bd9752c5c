"""Finding and grading final answers."""

import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

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
        ("12 and 13", None), ("", None), ("two", 2),
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


@pytest.mark.parametrize(
    ("text", "answer_format", "answer"),
    [
        # where weak models put it
        ("2 * 9 = 18 </think> <answer> 18 pens </answer>", "number", "18 pens"),
        ("<answer>She reads 12 on Monday and 6 later. The total is 12 + 6 = 18 pages.</answer>", "number", "18"),
        ("answer>18</answer>", "number", "18"), ("Answer: <answer>10 hours<answer>", "number", "10 hours"),
        ('{"reasoning": "6 * 3", "answer": "18"}', "number", "18"),
        ("Therefore, the answer (arabic numerals) is 18.", "number", "18"),
        ("The answer to the question is therefore 18.", "number", "18"),
        (r"\boxed{} and so 9 + 9 = 18.", "number", "18"), (r"It is \boxed{18} or \boxed{2", "number", None),
        ("That makes 18 pens.\n</answer>\n```", "number", "18"), ("18", "number", "18"), ("18\n", "math", "18"),
        # a next question, invented by the model
        ("3 * 6 = 18.\n\nUser: And 2 more?\nAssistant: 20.", "number", "18"),
        ("#### 18\n\nQuestion: how many is it?\n#### 7", "number", "18"),
        ("So \\boxed{18}.\n\nA farmer keeps 7 geese and sells 3. How many are left?\n\\boxed{4}", "math", "18"),
        # a result, not what else the last sentence holds
        ("3 * 6 = 18 apples, which last for 2 days.", "number", "18"),
        ("5 * 280 = 1400. So he needs 1400 plums for 2 months.", "number", "1400"),
        ("4 + 5 = 9. Next we do 9 * 2", "number", None), ("It costs $4 + $12.", "number", None),
        # no number merely because one is inside
        (r"\boxed{10x}", "number", None), (r"\boxed{10 + x}", "number", None), (r"\boxed{2^3}", "number", None),
        ("The answer is 3 or 3.5.", "number", None), ("The answer is between 3 and 4.", "number", None),
        # sentences around mathematics
        (r"Therefore, the angle is $90^\circ$.", "math", r"90^\circ"),
        ("<answer>The largest angle is 120 degrees</answer>", "math", "120"),
        (r"The answer is that $x$ equals $\frac{1}{2}$.", "math", r"\frac{1}{2}"),
        ("We then look at $x + 1$ and think about it", "math", None), ("It has 4 sides, and we know", "math", None),
        # options
        ("The answer is not A.", "choice", None), ("The answer is A or B.", "choice", None), ("So C.", "choice", "C"),
        ("**B**", "choice", "B"), ("The best option is (d)", "choice", "D"), (r"\boxed{(B)\ 12}", "choice", "B"),
        (r"\boxed{\textbf{(E)}\ 10}", "choice", "E"), ("The correct option is E: 5.", "choice", "E"),
        ("The answer is Ben.", "choice", None), ("I'd pick A's cousin", "choice", None),
    ],
)  # fmt: skip
def test_extraction_from_models_that_ramble(text, answer_format, answer):
    assert extract_answer(text, answer_format)[0] == answer


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("€1.234", 1.234), ("£20", 20), ("US$5", 5), (r"\$1,000 ", 1000), ("Rs. 40", 40), ("5 dollars", 5),
        ("1 000 000", 1_000_000), (r"10\ 000", 10000), (r"1{,}000{,}000", 1_000_000), ("10,00", None),
        (r"3\frac{1}{2}\text{ hours}", 3.5), ("2 and 1/2", 2.5), ("3 1/2 cups", 3.5), (r"\frac12", 0.5),
        (r"5 \times 10^3", 5000), (r"\text{18}", 18), ("18 apples per 2 days", 18), ("60 miles/hour", 60),
        (r"5\text{ cm}^2", 5), ("12 m/s", 12), ("4.5kg", 4.5), ("7-", None), ("1/2/3", None),
        ("2xy", None), ("2^3", None), ("2s", None), ("3 p.m.", None), ("3 or 4", None), ("3 + 4", None),
        ("5 - 3", None), (r"2\sqrt{3}", None), ("3 apples 4", None), ("1.2.3", None), ("18 = 18", None),
    ],
)  # fmt: skip
def test_numbers_with_units_and_other_dress(text, value):
    assert as_number(text) == (None if value is None else Fraction(str(value)))


@pytest.mark.parametrize(
    ("answer", "reference", "answer_format", "right"),
    [
        ("25%", "0.25", "number", True), (r"25\%", "25", "number", True), ("0.25", "25", "number", False),
        ("2500%", "0.25", "number", False), ("18.00", "18", "number", True), ("1,8", "18", "number", False),
        (r"-2 \le x < 7", "[-2,7)", "math", True), ("-2 < x < 7", "[-2,7)", "math", False),
        ("x > 3", r"(3,\infty)", "math", True), (r"x \ge 3", r"(3,\infty)", "math", False),
        (r"(-\infty,2)U(3,\infty)", r"(-\infty,2)\cup(3,\infty)", "math", True),
        ("(2,3]", "(2,3)", "math", False), ("(3,2)", "(2,3)", "math", False),
        ("3 p.m.", "3:00 PM", "math", True), ("noon", "12:00 p.m.", "math", True), ("3:30", "3:31", "math", False),
        (r"90^\circ", "90", "math", True), (r"\frac{\pi}{2}", r"90^\circ", "math", False),
        (r"\text{(B)}", "B", "choice", False), ("(B) 12", r"\text{(B)}", "math", True),
        ("(C)", r"\text{(B)}", "math", False), ("B", r"\text{(B)}", "math", True), ("12", r"\text{(B)}", "math", False),
        ("2s", "2", "math", False), ("2xy", "2", "math", False), ("2 - width", "2", "math", False),
        ("8", "2^3", "math", True), ("3", "2^3", "math", False),
        (r"\text{east}", "East.", "math", True), ("north-east", "east", "math", False),
        ("not even", "even", "math", False), ("1,3", "1,2", "math", False),
        (r"\{1,2\}", r"\{1,2,3\}", "math", False), (r"\emptyset", r"\varnothing", "math", True),
        (r"\begin{bmatrix}1&2\\3&4\end{bmatrix}", r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", "math", True),
        (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{pmatrix}1&3\\2&4\end{pmatrix}", "math", False),
        (r"x = 5", "5", "math", True), ("x = 5", "6", "math", False), (r"5\sqrt2", r"\sqrt{50}", "math", True),
    ],
)  # fmt: skip
def test_comparison_of_one_thing_in_two_writings(answer, reference, answer_format, right):
    assert is_correct(answer, reference, answer_format) is right


def test_boxes_may_nest_and_lack_braces():
    assert last_boxed(r"\boxed{\text{a }\{1\}}") == r"\text{a }\{1\}"
    assert last_boxed(r"thus \boxed 2.") == "2"


def test_a_hostile_expression_costs_its_time_limit_and_no_more(monkeypatch):
    assert symbolic.symbolically_equal("x + x", "2x")
    began = time.monotonic()
    with monkeypatch.context() as patch:
        patch.setattr(symbolic, "TIMEOUT_S", 1.0)
        assert not symbolic.symbolically_equal("9^{9^{9^{9^{9}}}}", "9^{9^{9^{9}}} + 1")
    assert time.monotonic() - began < 10
    assert symbolic.symbolically_equal("y + y", "2y")


def test_workers_are_used_again_by_the_threads_of_the_next_pool():
    before = len(symbolic._all)
    for first in (2, 12, 22):
        with ThreadPoolExecutor(2) as pool:
            equal = pool.map(lambda n: symbolic.symbolically_equal(f"{n}x + x", f"{n + 1}x"), range(first, first + 9))
            assert all(equal)
    assert len(symbolic._all) <= max(before, 2)


def test_a_worker_that_is_killed_costs_no_answer(monkeypatch):
    assert symbolic.symbolically_equal("a + a", "2a")
    exchange, doomed = symbolic._exchange, symbolic._idle[-1]

    def killing(worker, *arguments):
        if worker is doomed:
            worker.kill()
            worker.wait()
        return exchange(worker, *arguments)

    monkeypatch.setattr(symbolic, "_exchange", killing)
    assert symbolic.symbolically_equal("b + b", "2b")
    assert doomed not in symbolic._all


def test_a_grader_that_cannot_start_is_said_and_grades_nothing_wrong(monkeypatch):
    monkeypatch.setattr(symbolic, "_idle", deque())
    monkeypatch.setattr(symbolic.sys, "executable", "/bin/false")
    with pytest.raises(ChildProcessError, match="math-verify, .* does not start"):
        symbolic.symbolically_equal("7z + z", "8z")


@pytest.mark.parametrize(
    "text",
    ["9" * 6000, "1 " * 9000, "\n" * 9000, "(A) " * 9000, "\\boxed{" * 3000, "1/" * 9000, "$" * 9000, "x is " * 3000],
)
def test_rambling_is_graded_at_once(text):
    assert symbolic.symbolically_equal("1", "1 + 0"), "a worker has started"
    began = time.monotonic()
    for answer_format in ("number", "math", "choice"):
        assert not grade(f"The answer is {text}.", "5", answer_format).is_correct
        assert not grade(f"{text}.", "5", answer_format).is_correct
        assert not grade(f"\\boxed{{3}} {text}.", "5", answer_format).is_correct
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


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("So 40 + 18 = 5", None),
        ("The answer is 1", None),
        ("The answer is 18. Next, consider the", "18"),
        (r"Thus \\boxed{18}", "18"),
        ("#### 1", None),
    ],
)
def test_a_text_that_was_cut_off_has_only_the_answer_that_stands_whole(text, answer):
    assert grade(text, "18", "number", finished=False).answer == answer
