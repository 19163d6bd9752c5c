"""How different the solutions to one question are, and whether they grow alike: the collapse monitor."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from math import log2
from statistics import fmean
from typing import Any

MOST_COMPARED = 200
"""Questions whose solutions are held against each other by self-BLEU."""


def diversity(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Diversity of sampled solutions (rows with question_id, text, answer, num_tokens); means over questions.

    distinct_solutions: different texts per solution. distinct_1 to distinct_3: different n-grams of words per
    n-gram, over the solutions to one question (Li et al. 2016, arXiv 1510.03055). answer_entropy: of the final
    answers, in bits. self_bleu: BLEU of a solution against the others, 0 to 100 (Zhu et al. 2018, arXiv
    1802.01886). solution_tokens: mean length. All but the length need two solutions to some question.
    """
    groups: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[row["question_id"]].append(row)
    found = {"solution_tokens": fmean(row["num_tokens"] for row in rows)}
    several = [groups[name] for name in sorted(groups) if len(groups[name]) > 1]
    if not several:
        return found
    texts = [[row["text"] for row in group] for group in several]
    found["distinct_solutions"] = fmean(len(set(group)) / len(group) for group in texts)
    for n in (1, 2, 3):
        shares = [share for group in texts if (share := distinct_share(group, n)) is not None]
        if shares:
            found[f"distinct_{n}"] = fmean(shares)
    found["answer_entropy"] = fmean(entropy(row["answer"] for row in group) for group in several)
    found["self_bleu"] = fmean(self_bleu(group) for group in texts[:: -(-len(texts) // MOST_COMPARED)])
    return found


def distinct_share(texts: Iterable[str], n: int) -> float | None:
    """Different n-grams of words per n-gram; None where no text has n words."""
    grams = [
        gram for text in texts if (words := text.split()) for gram in zip(*(words[i:] for i in range(n)), strict=False)
    ]
    return len(set(grams)) / len(grams) if grams else None


def entropy(answers: Iterable[str | None]) -> float:
    """Entropy of a few answers in bits; no answer is an answer too."""
    counts = Counter(answers)
    total = sum(counts.values())
    return -sum(count / total * log2(count / total) for count in counts.values())


def self_bleu(texts: Sequence[str]) -> float:
    """Mean BLEU of each text against the others, 0 to 100."""
    from sacrebleu.metrics import BLEU

    bleu = BLEU(effective_order=True)
    return fmean(bleu.sentence_score(text, [*texts[:i], *texts[i + 1 :]]).score for i, text in enumerate(texts))


def alerts(first: Mapping[str, float], now: Mapping[str, float], limits: Mapping[str, float]) -> list[str]:
    """Sentences that say in what the solutions have grown alike, or changed in length, since the first iteration.

    limits: min_distinct, min_entropy, max_self_bleu, max_length_change, as `config.MonitorConfig` has them.
    """
    found = []
    for name, limit, words in (
        ("distinct_solutions", limits["min_distinct"], "distinct solutions per question"),
        ("answer_entropy", limits["min_entropy"], "entropy of the answers"),
    ):
        if name in first and name in now and now[name] < limit * first[name]:
            found.append(
                f"{words}: {now[name]:.2f}, {now[name] / first[name]:.0%} of {first[name]:.2f} in the first iteration "
                f"(alert below {limit:.0%} of it)"
            )
    bleu, at_first = now.get("self_bleu", 0.0), first.get("self_bleu", 0.0)
    if bleu > limits["max_self_bleu"] >= at_first:
        found.append(
            f"self-BLEU {bleu:.1f}, {at_first:.1f} in the first iteration (alert over {limits['max_self_bleu']:g})"
        )
    length, before, most = now["solution_tokens"], first["solution_tokens"], limits["max_length_change"]
    if before and not 1 / most <= length / before <= most:
        found.append(
            f"solutions of {length:.0f} tokens, {before:.0f} in the first iteration (alert over {most:g} times)"
        )
    return [f"Solutions may be collapsing. {sentence}" for sentence in found]
