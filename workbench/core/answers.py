"""The final answer of a solution: where it stands, and whether it is right.

Where it is looked for, in this order: the last `\\boxed{...}`; behind `####`; behind the last "the
answer is"; for multiple choice, a letter called correct or chosen, else the last one that stands as an
option; for numbers, the last number of a text that was not cut off. A text without any of these has no
answer, which is better than a wrong one.
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


LONGEST = 200
"""A longer text is no number: Python refuses to read integers of thousands of digits."""
SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
NUMBER = r"[-+−]?\s*(?:\d{1,3}(?:(?:,|\{,\}|\\,|\\!|,\\!)\d{3})+|\d+)?(?:\.\d+)?"
FRACTION = re.compile(r"^(-?)\\[dt]?frac\{?(-?\d+)\}?\{?(\d+)\}?$")
MIXED = re.compile(r"^(-?\d+)\s*(?:\\[dt]?frac\{(\d+)\}\{(\d+)\}|\s(\d+)/(\d+))$")
PLAIN = re.compile(rf"^({NUMBER})\s*(.*)$", re.DOTALL)
SCALED = re.compile(rf"(?:\s+({'|'.join(SCALES)})\b)", re.IGNORECASE)
LAST_NUMBER = re.compile(
    r"(?:(?<![\w)}])[-−])?\$?(?:\\[dt]?frac\{\d+\}\{\d+\}|\d+\s+\d+/\d+"
    r"|(?:\d+(?:(?:,|\{,\}|\\,|\\!|,\\!)\d+)*(?:\.\d+)?|(?<!\w)\.\d+)(?:/\d+|[eE][-+]?\d+)?)"
    rf"{SCALED.pattern}?"
)
FINISHED = re.compile(r"[\d.!?)%}\]$*°\"']\s*$")
STATED = re.compile(r"(?:answer|correct (?:option|choice))\**\s*(?:is|:|=)\s*:?\s*", re.IGNORECASE)
DENIED = re.compile(r"n(?:ot|['’]t)\b[\s(\\$]*[-−]?\d")
NO_UNIT = re.compile(r"\b(?:pi|e|i|sqrt|sin|cos|tan|log|ln|and|or|to)\b", re.IGNORECASE)
UNIT = re.compile(r"^(?:[a-zA-Z°µ²³/^.\s-]|\\(?:text|mathrm|mbox)\s*\{[^{}]*\}|\^\{?[23]\}?)*$")
# A small "a" is an option only where something marks it as one; else it is an article.
LETTER = re.compile(r"^\W*(?:(?i:option|choice|letter)\W+)?([A-Jb-hj](?!['’\w])|[ai](?=\s*(?:[).:,;*\]]|$)))")
CHOSEN = re.compile(
    r"\b([A-HJ])\)?,?\s+(?:is|must be)\s+(?:the\s+)?(?:correct|right|best|answer)\b"
    r"|\b(?:choose|pick|select)\s+(?:(?:option|choice|answer)\s+)?\(?([A-HJ])\b(?!['’])"
)
MARKED = re.compile(r"\(([A-Ja-j])\)|(?:^|\n)[ \t*]*([A-J])[.):](?:\s|$)|^\s*([A-J])\W*$")
WORDS = re.compile(r"^(?:\\text\{)?\s*[A-Za-z][A-Za-z'.]+(?:[\s-]+[A-Za-z'.]+)*\s*\}?$")
CLOCK = re.compile(r"^(\d{1,2}):(\d\d)\s*(?:([ap])\.?\s*m\.?)?$", re.IGNORECASE)
IN_BASE = re.compile(r"^(\w+)_\{?(\d+)\}?$")
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
        sentence = _sentence(text[stated[-1].end() :])
        denied = DENIED.match(sentence)
        answer = None if denied else _shaped(sentence, answer_format)
        if answer is not None or answer_format == "number" and (denied or re.match(r"[\s(\\$]*\d", sentence)):
            return answer, "stated"  # several numbers are no number
    if answer_format == "choice":
        marks = [next(filter(None, groups)) for groups in CHOSEN.findall(text) or MARKED.findall(text)]
        return (marks[-1].upper(), "letter") if marks else (None, "none")
    if answer_format == "number" and FINISHED.search(text):
        numbers = _numbers(text)
        return (numbers[-1], "last number") if numbers else (None, "none")
    return None, "none"


def _numbers(text: str) -> list[str]:
    """All numbers of a text, as written."""
    return [found.group() for found in LAST_NUMBER.finditer(text)]


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
        numbers = _numbers(answer.rpartition("=")[2])
        return numbers[0] if len(numbers) == 1 or "=" in answer and numbers else None
    return answer or None


def as_number(text: str) -> Fraction | None:
    """The exact value of a text that is one number: signs, separators, fractions, currency and units allowed."""
    if len(text) > LONGEST:
        return None
    text = re.sub(r"\\(?:text|mathrm|mbox)\s*\{\s*(?:\\?\$)?\s*\}", "", text.strip())
    text = text.replace("−", "-").replace("\\$", "$").strip("$ ").replace("$", "").strip()
    text = re.sub(r"(?:\^\s*\{?\\circ\}?|\\?%|°|\\(?:degree|circ)s?)\s*$", "", text).strip()
    if found := FRACTION.match(text):
        return _ratio(*found.groups())
    if found := MIXED.match(text):
        whole, *parts = (part for part in found.groups() if part is not None)
        part = _ratio("", *parts)
        size = None if part is None else abs(int(whole)) + part
        return -size if size is not None and whole.startswith("-") else size
    if found := re.match(r"^(-?)\(?\s*(-?\d+)\s*/\s*(\d+)\s*\)?$", text):
        return _ratio(*found.groups())
    if re.match(r"^-?\d+(?:\.\d+)?[eE][-+]?\d\d?$", text):
        return Fraction(text)
    found = PLAIN.match(text)
    digits = re.sub(r"[^\d.+-]", "", found[1])
    scale, unit = 1, found[2]
    if scaled := SCALED.match(f" {unit}"):
        scale, unit = SCALES[scaled[1].lower()], unit[len(scaled[1]) :]
    if not re.search(r"\d", digits) or not UNIT.match(unit) or re.match(r"[a-z]$", unit) or NO_UNIT.search(unit):
        return None
    return Fraction(digits) * scale


def _ratio(sign: str, top: str, bottom: str) -> Fraction | None:
    """A fraction from its parts; None where it divides by zero."""
    if not int(bottom):
        return None
    value = Fraction(int(top), int(bottom))
    return -value if sign else value


def is_correct(answer: str, reference: str, answer_format: str) -> bool:
    """Whether an extracted answer equals the reference."""
    if answer_format == "choice":
        return answer.upper() == reference.strip().upper()
    ours, theirs = as_number(answer), as_number(reference)
    if ours is not None and theirs is not None:
        exact = all(1000 % value.denominator == 0 for value in (ours, theirs))  # not cut short by rounding
        return ours == theirs or (not exact and abs(ours - theirs) <= abs(theirs) / 10_000)
    if answer_format == "number":
        return False
    ours, theirs = _plain_text(answer), _plain_text(reference)
    if ours == theirs:
        return True
    if (clock := CLOCK.match(ours)) and (other := CLOCK.match(theirs)):
        return _same_time(clock, other)
    if (based := IN_BASE.match(ours)) and (other := IN_BASE.match(theirs)):
        return based.groups() == other.groups()
    mathematical = answer_format == "math" and not WORDS.match(answer) and not WORDS.match(reference)
    return mathematical and symbolically_equal(answer, reference)


def _same_time(ours: re.Match, theirs: re.Match) -> bool:
    """3:30 p.m. is 15:30, and 3:30 where one side does not say which half of the day."""
    (hour, minute, half), (other_hour, other_minute, other_half) = ours.groups(), theirs.groups()
    hours = int(hour) % 12 + 12 * (half == "p") if half else int(hour)
    other_hours = int(other_hour) % 12 + 12 * (other_half == "p") if other_half else int(other_hour)
    either_half = bool(half) != bool(other_half) and 1 <= (other_hours if half else hours) <= 12
    return minute == other_minute and (hours == other_hours or either_half and (hours - other_hours) % 12 == 0)


def _plain_text(text: str) -> str:
    """A text without what does not matter: spaces, layout commands, case, closing dot."""
    text = re.sub(r"\\(?:text|mathrm|mbox|textbf)\s*\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"\\[dt]frac", r"\\frac", text).replace("\\varnothing", "\\emptyset")
    return NOISE.sub("", text).rstrip(".").casefold()


def grade(text: str, reference: str, answer_format: str) -> Grade:
    """Extract and compare."""
    answer, rule = extract_answer(text, answer_format)
    right = answer is not None and is_correct(answer, reference, answer_format)
    return Grade(answer, right, rule)
