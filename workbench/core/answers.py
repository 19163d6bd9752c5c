"""The final answer of a solution: where it stands, and whether it is right.

Where it is looked for, in this order: the last `\\boxed{...}`; behind `####`; behind the last "the
answer is"; for multiple choice, a letter that stands as an option; for numbers, the last number of a
text that was not cut off. A text without any of these has no answer, which is better than a wrong one.
"""

import re
from dataclasses import dataclass
from fractions import Fraction

from workbench.core.symbolic import symbolically_equal


@dataclass(frozen=True)
class Grade:
    """What was found, by which rule, and whether it equals the reference."""

    answer: str | None
    is_correct: bool
    rule: str


NUMBER = r"[-+−]?\s*(?:\d{1,3}(?:(?:,|\{,\}|\\,|\\!|,\\!)\d{3})+|\d+)?(?:\.\d+)?"
FRACTION = re.compile(r"^(-?)\\[dt]?frac\{?(-?\d+)\}?\{?(\d+)\}?$")
MIXED = re.compile(r"^(-?\d+)\s*(?:\\[dt]?frac\{(\d+)\}\{(\d+)\}|\s(\d+)/(\d+))$")
PLAIN = re.compile(rf"^({NUMBER})\s*(.*)$", re.DOTALL)
LAST_NUMBER = re.compile(r"-?\$?\d(?:[\d,]*\d)?(?:\.\d+)?(?:/\d+)?")
STATED = re.compile(r"(?:final answer|answer)\s*(?:is|:|=)\s*:?\s*", re.IGNORECASE)
UNIT = re.compile(r"^(?:[a-zA-Z°µ²³/^.\s-]|\\(?:text|mathrm|mbox)\s*\{[^{}]*\}|\^\{?[23]\}?)*$")
LETTER = re.compile(r"^\W*(?:option|choice|letter)?\W*([A-Ja-j])(?:\W|$)", re.IGNORECASE)
MARKED = re.compile(r"\(([A-Ja-j])\)|(?:^|\n)\s*([A-J])[.):](?:\s|$)|^\s*([A-J])\W*$")
WORDS = re.compile(r"^(?:\\text\{)?\s*[A-Za-z][A-Za-z'.]+(?:[\s-]+[A-Za-z'.]+)*\s*\}?$")
NOISE = re.compile(r"\\left|\\right|\\!|\\,|\\;|\\ |\\\$|\$|\s|~|\\displaystyle")


def last_boxed(text: str) -> str | None:
    """The content of the last `\\boxed{...}`, braces balanced; also `\\boxed 2`. None where it never closes."""
    at = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    if at < 0:
        return None
    rest = text[at:].removeprefix("\\boxed").removeprefix("\\fbox").lstrip()
    if not rest.startswith("{"):
        found = re.match(r"[^\s$.,]+", rest)
        return found.group() if found else None
    depth = 0
    for i, character in enumerate(rest):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth == 0:
            return rest[1:i].strip()
    return None


def extract_answer(text: str, answer_format: str) -> tuple[str | None, str]:
    """(answer, rule): the answer as written, and where it was found; (None, "none") where there is none."""
    boxed = last_boxed(text)
    if boxed is not None:
        return _shaped(boxed, answer_format), "boxed"
    if "####" in text:
        line = text.rpartition("####")[2].strip().split("\n")[0]
        return _shaped(line, answer_format), "####"
    stated = list(STATED.finditer(text))
    if stated:
        answer = _shaped(_sentence(text[stated[-1].end() :]), answer_format)
        if answer is not None:
            return answer, "stated"
    if answer_format == "choice":
        marks = [next(filter(None, groups)) for groups in MARKED.findall(text)]
        return (marks[-1].upper(), "letter") if marks else (None, "none")
    if answer_format == "number" and re.search(r"[\d.!?)%]\s*$", text):
        numbers = LAST_NUMBER.findall(text)
        return (numbers[-1], "last number") if numbers else (None, "none")
    return None, "none"


def _sentence(text: str) -> str:
    """The text up to the end of its line or sentence; a dot inside a number or abbreviation ends nothing."""
    line = text.strip().split("\n")[0]
    end = re.search(r"(?<!\bMr)(?<!\bMs)(?<!\bDr)(?<!\bMrs)(?<![a-z]\.[a-z])\.(?:\s+[A-Z]|\s*$)|[!?](?:\s|$)", line)
    line = line[: end.start()] if end else line
    return line.strip().rstrip(",;").strip("*").strip()


def _shaped(answer: str, answer_format: str) -> str | None:
    """An answer as its format wants it: a letter, a number without words around it, or as it stands."""
    answer = answer.strip().rstrip(".").strip()
    if answer_format == "choice":
        found = LETTER.match(re.sub(r"\\(?:text|mathrm|textbf|mathbf)\s*\{([^{}]*)\}", r"\1", answer))
        return found.group(1).upper() if found else None
    if answer_format == "number" and as_number(answer) is None:
        numbers = LAST_NUMBER.findall(answer)
        return numbers[-1] if len(numbers) == 1 or "=" in answer and numbers else None
    return answer or None


def as_number(text: str) -> Fraction | None:
    """The exact value of a text that is one number: signs, separators, fractions, currency and units allowed."""
    text = re.sub(r"\\(?:text|mathrm|mbox)\s*\{\s*(?:\\?\$)?\s*\}", "", text.strip())
    text = text.replace("−", "-").replace("\\$", "$").strip("$ ").replace("$", "").strip()
    text = re.sub(r"(?:\^\s*\{?\\circ\}?|\\?%|°|\\(?:degree|circ)s?)\s*$", "", text).strip()
    if found := FRACTION.match(text):
        sign, top, bottom = found.groups()
        return Fraction(int(sign + top) if sign and top[0] != "-" else int(top), int(bottom)) if int(bottom) else None
    if found := MIXED.match(text):
        whole, *parts = (part for part in found.groups() if part is not None)
        if not int(parts[1]):
            return None
        size = abs(int(whole)) + Fraction(int(parts[0]), int(parts[1]))
        return -size if whole.startswith("-") else size
    if found := re.match(r"^(-?)\(?\s*(-?\d+)\s*/\s*(\d+)\s*\)?$", text):
        value = Fraction(int(found[2]), int(found[3])) if int(found[3]) else None
        return -value if value is not None and found[1] else value
    found = PLAIN.match(text)
    digits = re.sub(r"[^\d.+-]", "", found[1]) if found else ""
    if not re.search(r"\d", digits) or not UNIT.match(found[2]) or re.match(r"[a-zA-Z]\d|[a-z]$", found[2]):
        return None
    return Fraction(digits)


def is_correct(answer: str, reference: str, answer_format: str) -> bool:
    """Whether an extracted answer equals the reference."""
    if answer_format == "choice":
        return answer.upper() == reference.strip().upper()
    ours, theirs = as_number(answer), as_number(reference)
    if ours is not None and theirs is not None:
        whole = ours.denominator == theirs.denominator == 1
        return ours == theirs or (not whole and abs(ours - theirs) <= abs(theirs) / 10_000)
    if answer_format == "number":
        return False
    if _plain_text(answer) == _plain_text(reference):
        return True
    mathematical = answer_format == "math" and not WORDS.match(answer) and not WORDS.match(reference)
    return mathematical and symbolically_equal(answer, reference)


def _plain_text(text: str) -> str:
    """A text without what does not matter: spaces, layout commands, case, closing dot."""
    text = re.sub(r"\\(?:text|mathrm|mbox|textbf)\s*\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"\\[dt]frac", r"\\frac", text)
    return NOISE.sub("", text).rstrip(".").casefold()


def grade(text: str, reference: str, answer_format: str) -> Grade:
    """Extract and compare."""
    answer, rule = extract_answer(text, answer_format)
    right = answer is not None and is_correct(answer, reference, answer_format)
    return Grade(answer, right, rule)
