"""Texts of a test set that stand in training texts: exactly, nearly the same, or sharing a long run of words.

Candidates for near-duplicates come from MinHash with locality-sensitive hashing (datasketch) and are then
compared exactly, so that chance decides about no hit that is reported.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

SHINGLE = 3
"""Words in a shingle."""
NEAR = 0.8
"""Share of shingles in common (Jaccard) from which two texts are near-duplicates."""
RUN = 13
"""Words in a row that two texts have in common (Brown et al. 2020, arXiv 2005.14165, appendix C)."""
CONTAINED = 0.6
"""Share of a test text's shingles in a training text that has such a run; below, they share a turn of phrase."""
WHOLE = 6
"""Words that a test text must have to count as seen where it stands, whole, in a solution."""
PERMUTATIONS = 128
BANDS = (32, 4)
"""Bands of the sketches, and rows of each: of pairs with similarity NEAR, one in ten million is no candidate."""
WORD = re.compile(r"\d+(?:\.\d+)?|(?<!\w)\.\d+|[^\W\d_]+|[^\w\s.,;:!?'\"`‘’“”…$\\#&@、。，；：！？]")
ALONE = re.compile(r"[({]([^\W_]*)[)}]")
"""Brackets that group nothing: x^{2} is x^2."""
OPTIONS = " (A) "
"""Begins the options of a question; one that is asked without them is the same."""


@dataclass(frozen=True)
class Hit:
    """A test text and the training text it was found in."""

    test_id: str
    train_id: str
    kind: Literal["exact", "near", "run"]
    """The same words, or in a solution all of them in a row; nearly the same; or similar, as from one template."""
    similarity: float
    """Share of all shingles that are in common; for a run, of the test text's."""


def words_of(text: str) -> list[str]:
    """A text's words, numbers, operators and brackets in lower case, without punctuation."""
    return WORD.findall(ALONE.sub(r" \1 ", text.lower()))


def overlaps(train: Mapping[str, str], test: Mapping[str, str], solutions: bool = False) -> list[Hit]:
    """The best hit of each test text among the training texts (both id -> text), in the order of the test texts.

    solutions: the training texts are solutions, in which a test question can stand, whole or in part.
    """
    seen, asked = _worded(train), _worded(test)
    bare = _worded({name: text.partition(OPTIONS)[0] for name, text in test.items() if OPTIONS in text})
    same = [(find, texts) for find in (_exact, _near) for texts in (asked, bare)]
    hits: dict[str, Hit] = {}
    for find, texts in [*([(_quoted, asked)] if solutions else same), (_runs, asked)]:
        hits |= find(seen, {name: words for name, words in texts.items() if name not in hits})
    return [hits[name] for name in test if name in hits]


def _worded(texts: Mapping[str, str]) -> dict[str, list[str]]:
    """The words of each text that has any."""
    return {name: words for name, text in texts.items() if (words := words_of(text))}


def repeats(texts: Mapping[str, str]) -> list[tuple[str, str]]:
    """Pairs of ids within one set whose texts are the same: (the first, the later one)."""
    first: dict[tuple[str, ...], str] = {}
    found = []
    for name, words in _worded(texts).items():
        key = tuple(words)
        if key in first:
            found.append((first[key], name))
        first.setdefault(key, name)
    return found


def _exact(seen: Mapping[str, list[str]], asked: Mapping[str, list[str]]) -> dict[str, Hit]:
    """Texts with the same words in the same order."""
    whole = {tuple(words): name for name, words in reversed(seen.items())}
    return {
        name: Hit(name, whole[tuple(words)], "exact", 1.0) for name, words in asked.items() if tuple(words) in whole
    }


def _quoted(seen: Mapping[str, list[str]], asked: Mapping[str, list[str]]) -> dict[str, Hit]:
    """Texts of at least `WHOLE` words, all of which stand in a row in a training text."""
    begins: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for name, words in asked.items():
        if len(words) >= WHOLE:
            begins[tuple(words[:WHOLE])].append(name)
    hits: dict[str, Hit] = {}
    for name, words in seen.items():
        for i in range(len(words) - WHOLE + 1):
            for test in begins.get(tuple(words[i : i + WHOLE]), ()):
                if test not in hits and words[i : i + len(asked[test])] == asked[test]:
                    hits[test] = Hit(test, name, "exact", 1.0)
    return hits


def _shingles(words: list[str]) -> set[str]:
    return {" ".join(words[i : i + SHINGLE]) for i in range(max(1, len(words) - SHINGLE + 1))}


def _near(seen: Mapping[str, list[str]], asked: Mapping[str, list[str]]) -> dict[str, Hit]:
    """Texts with most shingles in common."""
    from datasketch import MinHash, MinHashLSH

    def sketches(texts: Mapping[str, list[str]]) -> Iterator[tuple[str, MinHash]]:
        made = MinHash.generator(
            [[s.encode() for s in _shingles(words)] for words in texts.values()], num_perm=PERMUTATIONS
        )
        return zip(texts, made, strict=True)

    index = MinHashLSH(num_perm=PERMUTATIONS, params=BANDS)
    for name, sketch in sketches(seen):
        index.insert(name, sketch)
    hits = {}
    for name, sketch in sketches(asked):
        mine = _shingles(asked[name])
        best = max(((_jaccard(mine, _shingles(seen[c])), c) for c in sorted(index.query(sketch))), default=(0.0, ""))
        if best[0] >= NEAR:
            hits[name] = Hit(name, best[1], "near", best[0])
    return hits


def _jaccard(first: set[str], second: set[str]) -> float:
    return len(first & second) / len(first | second)


def _runs(seen: Mapping[str, list[str]], asked: Mapping[str, list[str]]) -> dict[str, Hit]:
    """Texts most of which stands in a training text, with `RUN` words in a row."""
    wanted: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for name, words in asked.items():
        for i in range(len(words) - RUN + 1):
            wanted[tuple(words[i : i + RUN])].add(name)
    hits: dict[str, Hit] = {}
    for name, words in seen.items():
        runs = (tuple(words[i : i + RUN]) for i in range(len(words) - RUN + 1))
        for test in sorted({test for run in runs for test in wanted.get(run, ())}):
            mine = _shingles(asked[test])
            share = len(mine & _shingles(words)) / len(mine)
            if share >= max(CONTAINED, hits[test].similarity + 1e-9 if test in hits else 0.0):
                hits[test] = Hit(test, name, "run", share)
    return hits
