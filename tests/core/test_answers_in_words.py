"""Answers in words, in sentences and behind echoed templates; each rule with what it must not take for an answer."""

from fractions import Fraction

import pytest

from workbench.core.answers import as_number, extract_answer, grade, is_correct


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("two", 2), ("Twenty-four apples", 24), ("ninety five", 95), ("one hundred and five", 105), ("zero", 0),
        ("two thousand five hundred", 2500), ("three hundred fifty square miles", 350), ("two thirds", Fraction(2, 3)),
        ("one-half", Fraction(1, 2)), (r"\text{seven}", 7), ("20 dollars for two days", 20),
        (r"0.\overline{6}", Fraction(2, 3)), (r"0.1\overline{6}", Fraction(1, 6)), (r"1.\overline{3}", Fraction(4, 3)),
        # no number, or not that one
        ("two three", None), ("two or three", None), ("two and three", None), ("one of them", None),
        ("one possible answer", None), ("two more", None), ("twelve-sided", None), ("seven times", None),
        ("twenty fifth", None), ("5 two", None), ("tenth", None), ("none", None), ("someone", None), ("two 3", None),
    ],
)  # fmt: skip
def test_numbers_in_words(text, value):
    assert as_number(text) == value


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        # a count in words
        (r"The graph of the parabola has two \( y \)-intercepts.", "two"),
        ("The answer is that it is undefined for exactly two values of $x$: $x=3$ and $x=-3$.", "two"),
        ("Thus there are twenty-four such numbers.", "twenty-four"),
        ("We have two cases to look at.", None), ("Thus it is one of the roots.", None),
        ("There are **four** possible numbers that both could be thinking of.", "four"),
        ("So there are 12 ways to choose them.", "12"), ("There are two roots. We need the larger.", None),
        ("There are two cases, $x = 1$ and $x = 2$.", None), ("There are 12 ways to choose 3 of them.", None),
        # a calculation in a tag
        ("<answer> Using this, the term is a_100 = 6 + (100 - 1)4 = 6 + 396 = 402. </answer>", "402"),
        ("<answer>We put $x$ into $24-x$:\n$24-5$\nSo, the value of $24-x$ is $19$.\n</answer>", "19"),
        # what is said about an answer, and a stray backslash
        ("Answer: 1/2\n\nThe answer is technically correct.", "1/2"),
        (r"The final answer will be inside \boxed{}. Thus x = 3 + 4 = 7.", "7"),
        (r"<answer>a = 2\sqrt{3}\.</answer>", r"a = 2\sqrt{3}"),
        # the sentence that a text ends on
        (r"We multiply. The ordered pair $(m, b)$ is $(\frac{3}{2}, -13)$.", r"(\frac{3}{2}, -13)"),
        ("The quotient is thus $113_5$.", "113_5"), ("Note that the angle is $90^\\circ$.", None),
        ("If the angle is $90^\\circ$.", None), ("The angle is $90^\\circ$, so we can look at the triangle.", None),
        ("The angle is $90^\\circ$. We still need the side.", None), ("Is the angle $90^\\circ$?", None),
        ("Divide by two. So, $p(7) = 105.$", "p(7) = 105."), ("We multiply: 15.625 × 12 = 187.5 calories.", "187.5"),
        ("We see 3 + 4 = 7, and the rest is left.", None), ("So 3 + 4 = 7 is to be added to the 5.", None),
        # what an <answer> tag says, behind it what it says of that
        ("<answer>Thus, the LCM is 360. It takes the highest powers. Is this correct?</answer>", "360"),
        ("<answer>There are $4$ sides. The area is unknown.</answer>", "unknown"),
        ("Answer: To solve for $x$, we divide. Dividing by $31$, we find that $x = 21/31$.\n\nAnd so on", "x = 21/31"),
        ("####\nThe number of hands is 2598960.", "2598960"), ("#### \\frac{1}{2}", r"\frac{1}{2}"),
        ("<answer>10&radic;6</answer>", "10√6"), ("<answer>a&b</answer>", "a&b"),
        # all of several formulas, not the first
        ("Thus, the solutions are $2$ and $-2$.", "2, -2"), ("The answer is that $x$ is $1$, $2$, or $3$.", "1, 2, 3"),
        # headings, and formulas on lines of their own
        ("It is $7i - 2.$\n\n# Answer\n\n7i - 2", "7i - 2"), ("So.\n\n**Final answer**\n\nx = 3", "x = 3"),
        ("The answer is:\n\\[\n\\frac{2}{3}.\n\\]", r"\frac{2}{3}"), ("# Answer\n$$\nx^2\n$$\nas said", "x^2"),
        ("We answer\nand go on", None),
        # the displayed equation that a text ends on
        ("We find\n\\[\nx = 3 + 4 = 7.\n\\]", "7"), ("So\n\\begin{align*}\na &= 1 \\\\\n&= 2.\n\\end{align*}", "2"),
        ("The point is\n\\[ (1, 2) \\]", "(1, 2)"), ("We have\n\\[ x + 1 \\]", None),
        ("So\n\\[ x = 2 \\quad\\text{or}\\quad x = 3 \\]", None), ("So\n\\[ x = 2, y = 3 \\]", None),
        ("So\n\\[ x = 2 + \\]\nand we", None),
    ],
)  # fmt: skip
def test_answers_in_sentences(text, answer):
    assert extract_answer(text, "math")[0] == answer


@pytest.mark.parametrize(
    ("text", "answer_format", "answer"),
    [
        (r"It is \boxed{7}. I put my final answer within \boxed{}.", "math", "7"),
        (r"It is \boxed{7}. Write \boxed{\text{your answer}}.", "math", "7"),
        ("<answer>7</answer> as in <answer>answer here</answer>", "math", "7"),
        ("<answer>7</answer> as in <answer>...</answer>", "number", "7"),
        ("<answer>your final answer here</answer>", "math", None), (r"\boxed{answer}", "math", None),
        ('<answer content="1"></answer>', "math", "1"), ('<answer value="B"/>', "choice", "B"),
        ("<answer>A</answer>", "choice", "A"), (r"\boxed{\emptyset}", "math", r"\emptyset"),
        (r"It is \boxed{7}.<|im_end|><|im_start|>user 2 + 3?<|im_end|>\boxed{5}", "math", "7"),
        ("The answer is 7.</s> The answer is 5.", "number", "7"),
        (r"<|im_start|>user\n2 + 3?<|im_end|>\boxed{5}", "number", "5"),
        # another problem behind the box, and a second thought
        ("\\[ \\boxed{7} \\]\n\nTom has 4 shelves of 15 books. How many are there? There are \\boxed{9}.", "math", "7"),
        ("So \\boxed{7}.\n\nFind the sum of all the angles of a regular pentagon.\n\nIt is \\boxed{540}.", "math", "7"),
        ("So \\boxed{7}.\n\nWait, does this hold for the negative numbers, too? No: \\boxed{6}.", "math", "6"),
        ("**Question:** 3 + 4?\n\n**Question:** 3 + 4?\nIt is \\boxed{7}.\n\n**Question:** 1?\n\\boxed{", "math", "7"),
        ("So \\boxed{7}.\n\nDid the question ask for the sum of the two? It is \\boxed{6}.", "math", "6"),
        # a letter joined to its number
        (r"Its length is 5 meters, so \boxed{5m}.", "number", None),
        ("It moves 5 meters. The answer is 5m", "math", "5 m"),
        ("Let $m$ be the meters. The answer is 5m", "math", "5m"), ("So 2x + 3m = 8m. The answer is 5m", "math", "5m"),
    ],
)  # fmt: skip
def test_templates_tags_and_ends(text, answer_format, answer):
    assert extract_answer(text, answer_format)[0] == answer


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        ("two", "2", True), ("2", r"\text{two}", True), ("two", "3", False), ("one of them", "1", False),
        (r"\{x \mid x > 3\}", r"(3,\infty)", True), (r"\{x \mid x \ge 3\}", r"(3,\infty)", False),
        (r"\{x : x < -2 \text{ or } x > 2\}", r"(-\infty,-2)\cup(2,\infty)", True),
        ("x < 3", r"\left(-\infty, 3\right)", True), ("(3, oo)", r"(3,\infty)", True), (r"x \in [1,2]", "[1,2]", True),
        (r"\{1, 3\}", "(1,3)", False), ("x < -2 or x > 2", r"(-\infty,-2]\cup(2,\infty)", False),
        (r"\{3\}", r"(3,\infty)", False), (r"\mathbb{R}", r"(-\infty,\infty)", True),
        ("3:30:00", "3:30", True), ("3:30:15", "3:30", False), ("3:30:15 p.m.", "15:30:15", True),
        (r"5 \pmod{7}", "5", True), (r"5 \pmod 7", r"5 \pmod 8", False), (r"3 \pmod{7}", "5", False),
        ("pi/2", r"\frac{\pi}{2}", True), ("3sqrt(5)", r"3\sqrt{5}", True), ("√5", r"\sqrt{5}", True),
        ("CD", r"\overline{CD}", True), ("DE", r"\overline{CD}", False),
        ("10√6", r"10\sqrt{6}", True), ("3π", r"3\pi", True),
        ("3pi", "3", False), ("sqrt(5)", "5", False), ("√(5)", "5", False),
    ],
)  # fmt: skip
def test_more_writings_of_one_thing(answer, reference, right):
    assert is_correct(answer, reference, "math") is right


@pytest.mark.parametrize("text", ["The sum is $7$.", "So\n\\[ x = 7 \\]", "The shape has seven sides."])
def test_a_text_that_was_cut_off_gives_nothing_by_its_last_sentence(text):
    assert grade(text, "7", "math").is_correct
    assert grade(text, "7", "math", finished=False).answer is None
