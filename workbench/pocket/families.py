"""Four families of arithmetic word problems, generated from a seed.

`pocket_steps` is the in-domain family: stories of two or three steps. The other three ask for the
same arithmetic in another form and serve out of domain:

    pocket_steps    "Mia has 14 shells. She finds 9 more. Then she gives 5 to Leo. How many ..."   -> 18
    pocket_words    "A bus carries 31 people and 12 get off. How many people are still on it?"     -> 19
    pocket_choice   "Which number is 7 times 6? (A) 36 (B) 42 (C) 48 (D) 49"                       -> B
    pocket_compare  "Leo is 31 years old and Mia is 17. How many years older is Leo than Mia?"     -> 14
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random

NAMES = {
    "Mia": "she", "Leo": "he", "Ana": "she", "Tom": "he", "Zoe": "she", "Max": "he",
    "Eva": "she", "Sam": "he", "Ida": "she", "Ben": "he", "Lin": "she", "Raj": "he",
}  # fmt: skip
ITEMS = ["shells", "coins", "cards", "books", "stamps", "apples", "marbles", "pens", "beads", "keys"]


@dataclass(frozen=True)
class Problem:
    """A question, its final answer, and one worked solution that ends in that answer."""

    question: str
    answer: str
    work: str
    is_sum: bool = False
    """One addition is all there is to it."""

    @property
    def solution(self) -> str:
        """The worked solution with its closing sentence."""
        return f"{self.work} {closing(self.answer)}"


def closing(answer: str) -> str:
    """The sentence that states a final answer; an option letter stands in brackets."""
    return f"The answer is ({answer})." if answer.isalpha() else f"The answer is {answer}."


def _steps(rng: Random) -> Problem:
    """A story about one person's things that changes two or three times."""
    name, friend = rng.sample(list(NAMES), 2)
    pronoun, item = NAMES[name].capitalize(), rng.choice(ITEMS)
    total = rng.randint(4, 40)
    question, work = [f"{name} has {total} {item}."], []
    for step in range(rng.choice((2, 3))):
        adverb = "Then" if step else "First"
        kinds = ["add", "add", "subtract"] + (["double"] if total <= 30 else [])
        kinds += ["halve"] if total % 2 == 0 and total >= 8 else []
        kind = rng.choice(kinds) if total > 6 else "add"
        if kind == "add":
            amount, before = rng.randint(3, 29), total
            total += amount
            told = rng.choice(
                (
                    f"{pronoun} finds {amount} more.",
                    f"{friend} gives {name} {amount} more.",
                    f"{pronoun} buys another {amount}.",
                )
            )
            done = f"{before} + {amount} = {total}."
        elif kind == "subtract":
            amount, before = rng.randint(2, min(total - 1, 29)), total
            total -= amount
            told = rng.choice(
                (
                    f"{pronoun} gives {amount} to {friend}.",
                    f"{pronoun} loses {amount} of them.",
                    f"{pronoun} sells {amount}.",
                )
            )
            done = f"{before} - {amount} = {total}."
        elif kind == "double":
            before, total = total, total * 2
            told, done = "The number doubles.", f"{before} * 2 = {total}."
        else:
            before, total = total, total // 2
            told, done = f"{pronoun} gives half of them away.", f"{before} / 2 = {total}."
        question.append(told)
        work.append(f"{adverb} {done}")
    question.append(f"How many {item} does {name} have now?")
    return Problem(" ".join(question), str(total), " ".join(work))


def _words(rng: Random) -> Problem:
    """One step, told about things nobody owns; half of the stories hold a number that does not matter."""
    kind = rng.choice(("add", "subtract", "multiply"))
    aside = rng.choice(
        ("", "", f"The day has {rng.randint(2, 24)} hours left. ", f"It is {rng.randint(2, 30)} degrees. ")
    )
    place = rng.choice(("farm", "park", "school", "harbor", "market", "museum", "hotel", "village"))
    crowd = rng.choice(("people", "guests", "children", "workers", "tourists", "players"))
    if kind == "add":
        a, b = rng.randint(5, 60), rng.randint(5, 39)
        text = rng.choice(
            (
                f"The {place} counts {a} cats and {b} dogs. What is the total number of animals?",
                f"On Monday {a} {crowd} came to the {place}, on Tuesday {b}. What was the total for both days?",
                f"A bus to the {place} had {a} {crowd} when {b} got on. How many rode on?",
            )
        )
        return Problem(aside + text, str(a + b), f"{a} + {b} = {a + b}.", is_sum=True)
    if kind == "subtract":
        a = rng.randint(15, 90)
        b = rng.randint(3, a - 2)
        text = rng.choice(
            (
                f"A bus from the {place} carries {a} {crowd} and {b} get off. How many are still on it?",
                f"Of {a} lamps in the {place} {b} went out. How many still burn?",
                f"A rope of {a} meters lies at the {place}, and {b} meters are taken. What length is left?",
            )
        )
        return Problem(aside + text, str(a - b), f"{a} - {b} = {a - b}.")
    a, b = rng.randint(2, 9), rng.randint(2, 9)
    text = rng.choice(
        (
            f"At the {place} each of {a} tables seats {b} {crowd}. How many {crowd} can sit?",
            f"A baker brings {a} trays with {b} rolls each to the {place}. What is the total number of rolls?",
            f"A ticket to the {place} costs {b} dollars. What do {a} {crowd} pay?",
        )
    )
    return Problem(aside + text, str(a * b), f"{a} * {b} = {a * b}.")


def _choice(rng: Random) -> Problem:
    """Multiple choice among four numbers; the answer is the letter."""
    kind = rng.choice(("plus", "minus", "times"))
    if kind == "plus":
        a, b = rng.randint(5, 60), rng.randint(5, 39)
        value, sign = a + b, "+"
    elif kind == "minus":
        a = rng.randint(15, 90)
        b = rng.randint(3, a - 2)
        value, sign = a - b, "-"
    else:
        a, b = rng.randint(2, 9), rng.randint(2, 9)
        value, sign = a * b, "*"
    near = [value + d for d in (-10, -9, -3, -2, -1, 1, 2, 3, 9, 10) if value + d > 0]
    options = rng.sample(near, 3) + [value]
    rng.shuffle(options)
    letter = "ABCD"[options.index(value)]
    lead = rng.choice(("Which number is", "Pick the value of", "Choose what equals"))
    listed = [f"({mark}) {option}" for mark, option in zip("ABCD", options, strict=True)]
    passed = "".join(f"{option} no. " for option in listed[: options.index(value)])
    return Problem(
        f"{lead} {a} {kind} {b}? {' '.join(listed)}",
        letter,
        f"{a} {sign} {b} = {value}. {passed}({letter}) {value} yes.",
        is_sum=kind == "plus",
    )


def _compare(rng: Random) -> Problem:
    """The difference between two amounts, half of the time with a third person's amount beside them."""
    first, second, third = rng.sample(list(NAMES), 3)
    a = rng.randint(12, 80)
    b = rng.randint(3, a - 2)
    c = rng.randint(3, 80)
    extra = rng.random() < 0.5
    kind = rng.choice(("older", "score", "fewer", "taller"))
    if kind == "older":
        aside = f" {third} is {c}." if extra else ""
        text = f"{first} is {a} years old and {second} is {b}.{aside} How many years older is {first} than {second}?"
    elif kind == "score":
        aside = f", {third} scores {c}" if extra else ""
        text = (
            f"{second} scores {b} points{aside}, {first} scores {a}. By how many points is {first} ahead of {second}?"
        )
    elif kind == "fewer":
        aside = f" {third} runs {c} laps." if extra else ""
        text = (
            f"{first} runs {a} laps, and {second} runs {b} fewer than {first}.{aside} How many laps does {second} run?"
        )
    else:
        b = rng.randint(3, 39)
        aside = f" The birch is {c} feet tall." if extra else ""
        text = f"The oak is {a} feet tall, the pine {b} feet taller than the oak.{aside} How tall is the pine?"
        return Problem(text, str(a + b), f"{a} + {b} = {a + b}.", is_sum=True)
    return Problem(text, str(a - b), f"{a} - {b} = {a - b}.")


FAMILIES: dict[str, Callable[[Random], Problem]] = {
    "pocket_steps": _steps,
    "pocket_words": _words,
    "pocket_choice": _choice,
    "pocket_compare": _compare,
}


def problems(family: str, seed: int) -> Iterator[Problem]:
    """Endless problems of one family; questions may repeat."""
    rng = Random(f"{family}:{seed}")
    while True:
        yield FAMILIES[family](rng)
