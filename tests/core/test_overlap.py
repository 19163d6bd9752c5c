"""Test questions that were seen in training: found whatever their dress, and no others."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix

from tests.conftest import DATASETS, needs_datasets
from workbench.core.overlap import NEAR, _shingles, overlaps, repeats, words_of
from workbench.jobs import TaskSource
from workbench.tasks import load_questions

BIRDS = "Twelve birds sat on the long fence behind the old red barn and then eight more birds came. How many are there?"


def texts(task, split):
    loaded = load_questions(TaskSource(task=task, datasets=str(DATASETS)), split)
    return {question.question_id: question.text for question in loaded.questions}


def kinds(train, test):
    return [(hit.test_id, hit.train_id, hit.kind) for hit in overlaps(train, test)]


def test_the_same_question_in_another_dress():
    train = {"a": "Something else entirely.", "b": BIRDS}
    assert kinds(train, {"x": BIRDS.upper().replace(".", " .")}) == [("x", "b", "exact")]
    assert kinds(train, {"x": BIRDS.replace("Twelve", "12")}) == [("x", "b", "near")]
    assert kinds(train, {"x": BIRDS + " (A) 4 (B) 20 (C) 96 (D) 1.5"}) == [("x", "b", "exact")]
    assert kinds(train, {"x": f"{BIRDS} If four leave, and {BIRDS[:40]}?"}) == [("x", "b", "run")]
    assert kinds(train, {"x": "Twelve birds sat on a wall. How many are there?"}) == []


def test_operators_and_decimals_tell_questions_apart():
    assert words_of("What is 3.5 + x^2?") == ["what", "is", "3.5", "+", "x", "^", "2"]
    assert words_of(r"$\frac{1}{2} x^{2}$.") == words_of(r"\frac 1 2 x^2!")


@pytest.mark.parametrize(
    ("seen", "asked"),
    [
        ("What is 3 + 4?", "What is 3 - 4?"),
        ("What is 35?", "What is 3.5?"),
        ("What is 6 × 3?", "What is 6 ÷ 3?"),
        ("Is x ≤ 3 for all x?", "Is x ≥ 3 for all x?"),
        ("Compute (2+3)*4 for me", "Compute 2+(3*4) for me"),
        (r"Find $\sqrt{2+3}$.", r"Find $\sqrt{2}+3$."),
        ("Compute .5 + 1", "Compute 5 + 1"),
        ("?!", "..."),
    ],
)
def test_what_differs_in_its_mathematics_or_has_no_words_is_no_hit(seen, asked):
    assert kinds({"a": seen}, {"x": asked}) == [] and repeats({"a": seen, "x": asked}) == []


def test_a_solution_that_quotes_a_test_question():
    train = {"s": f"As in the riddle: {BIRDS} So the answer is 20.", "t": "What is 15% of 40? It is 6."}
    asked = {"x": BIRDS, "y": "How many are there?", "z": "What is 15% of 40?", "w": "What is 15% of 41?"}
    hits = overlaps(train, asked, solutions=True)
    assert [(hit.test_id, hit.train_id, hit.kind) for hit in hits] == [("x", "s", "exact"), ("z", "t", "exact")]
    part = overlaps(train, {"x": BIRDS + " And how many had four legs?"}, solutions=True)
    assert [hit.kind for hit in part] == ["run"]


@settings(deadline=None)
@given(st.lists(st.integers(0, 400), min_size=8, max_size=60), st.integers(0, 50), st.integers(0, 400))
def test_no_near_duplicate_is_missed(numbers, place, other):
    """Against the definition: similarity of shingles of every pair, without sketches."""
    words = [f"w{chr(97 + n // 26)}{chr(97 + n % 26)}" for n in numbers]
    changed = [*words]
    changed[place % len(words)] = f"v{other}"
    first, second = (_shingles(words_of(" ".join(text))) for text in (words, changed))
    is_near = len(first & second) / len(first | second) >= NEAR
    found = kinds({"a": " ".join(words)}, {"x": " ".join(changed)})
    assert (("x", "a", "near") in found) == is_near


@settings(deadline=None)
@given(st.lists(st.text(alphabet="abc 12+", max_size=30), max_size=8))
def test_every_text_is_found_in_a_set_that_holds_it(drawn):
    named = {str(i): text for i, text in enumerate(drawn)}
    named = {name: text for name, text in named.items() if words_of(text)}
    assert {hit.test_id for hit in overlaps(named, named)} == set(named)
    assert len(repeats(named)) == len(named) - len({tuple(words_of(text)) for text in named.values()})


@needs_datasets
def test_the_known_overlaps_are_found():
    mawps, asdiv, math = texts("mawps", "test"), texts("asdiv", "test"), texts("math", "train")
    exact = [hit for hit in overlaps(mawps, asdiv) if hit.kind == "exact"]
    same = set(mawps.values()) & set(asdiv.values())
    assert len(exact) >= 217 and same <= {asdiv[hit.test_id] for hit in exact}
    assert ("train-925", "train-959") in repeats(math)
    assert ("test-4656", "train-2948", "exact") in kinds(math, texts("math", "test"))
    assert len(repeats(mawps)) >= 87


@needs_datasets
def test_every_near_duplicate_of_the_real_sets_is_found():
    """Against the shingles of all pairs of MATH's train and test questions."""
    train, test = texts("math", "train"), texts("math", "test")
    sides = [[_shingles(words_of(text)) for text in side.values()] for side in (train, test)]
    columns = {shingle: at for at, shingle in enumerate(sorted(set().union(*sides[0], *sides[1])))}
    seen, asked = (
        csr_matrix(
            (np.ones(sum(map(len, side))), [columns[s] for row in side for s in row], np.cumsum([0, *map(len, side)])),
            (len(side), len(columns)),
        )
        for side in sides
    )
    sizes = [np.array([len(row) for row in side]) for side in sides]
    names, expected, columnwise = list(test), set(), seen.T.tocsr()
    for at in range(0, len(names), 200):
        pairs = (asked[at : at + 200] @ columnwise).tocoo()
        similarity = pairs.data / (sizes[0][pairs.col] + sizes[1][at + pairs.row] - pairs.data)
        expected |= {names[at + row] for row in pairs.row[similarity >= NEAR]}
    found = {hit.test_id for hit in overlaps(train, test) if hit.kind != "run"}
    assert len(expected) > 70 and expected <= found
