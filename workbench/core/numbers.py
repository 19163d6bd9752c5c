"""What number a text is: exact values, with the units, separators, currencies and words that people put around them."""

import re
from fractions import Fraction

from workbench.core.symbolic import WRAPPED

LONGEST = 200
"""A longer text is no number: Python refuses to read integers of thousands of digits."""
SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
SMALL = {word: value for value, word in enumerate(_SMALL.split())}
SMALL |= {word: 10 * tens for tens, word in enumerate(_TENS.split(), start=2)}
PARTS = {
    "half": 2,
    "third": 3,
    "quarter": 4,
    "fourth": 4,
    "fifth": 5,
    "sixth": 6,
    "seventh": 7,
    "eighth": 8,
    "tenth": 10,
}
_PART = re.compile(rf"[\s-]+({'|'.join(PARTS)}|halve)(s?)\b", re.IGNORECASE)
SPELLED = re.compile(
    rf"(?:{'|'.join(SMALL)})\b(?:(?:\s+and\s+|[\s-]+)(?:{'|'.join((*SMALL, *SCALES))})\b)*(?!-(?!{'|'.join(PARTS)}))",
    re.IGNORECASE,
)
SHORT_UNIT = re.compile(
    r"[mgshlLNJWVACFK]|[ckmn]m|in|ft|yd|mi|[km]?g|lbs?|oz|m[lL]|k[JW]|[KMGT]B|hrs?|min|sec|st|nd|rd|th"
)
"""Of words shorter than three letters, or joined to their number, only these are units: 2xy and 3 i hold none."""
NO_UNIT = re.compile(r"pi|sqrt|sin|cos|tan|log|ln|mod|choose|and|or|to|not|plus|minus|times|over|out|am|pm")
NAMED = {"m": "met(?:er|re)|minute|mile", "s": "second", "g": "gram", "h": "hour", "l": "lit(?:er|re)", "n": "newton"}
JOINED = re.compile(r"^\$?(-?\d[\d,.]*)([mghslLN])\$?$")
JOINT = re.compile(r"of|per|for|in|after|with|from|on|every|at|by")
"""Behind these a unit may hold another number: 12 cups for 3 days."""
UNSURE = re.compile(
    r"\b(?:of|that|wh\w+|more|less|another|else|possible|thing|first|second|ninth|half|halves|too|many)\b",
    re.IGNORECASE,
)
"""Behind a number in words, these make it no count: one of them, two more."""
WORD = re.compile(r"(?:-?[A-Za-zµΩ°%'’][A-Za-zµΩ°%'’-]*(?:\^\{?-?\d\}?|[²³])?|/)")
MARKUP = re.compile(r"\\left|\\right|\\displaystyle|\\[()\[\]]|\*\*|`|(?:\bUS)?\\?\$|[€£¥]|\b(?:Rs\.?|USD)(?=\s*\d)")
DEGREE = re.compile(r"\^\s*\{?\s*\\circ\s*\}?|\\degrees?\b|\\circ\b")
SEPARATED = re.compile(r"(?<![\d.])\d{1,3}(?:(?:,?\\!\s?,?(?:\\!)?|\{,\}|\\[, ]|[,~\s])\d{3})+(?!\d)")
FRACTION = re.compile(r"\\[dt]?frac\s*(?:\{\s*(-?\d+)\s*\}|(\d))\s*(?:\{\s*(-?\d+)\s*\}|(\d))")
REPEATING = re.compile(r"(?<![\d.])(\d{0,9})\.(\d{0,9})\\overline\s*\{?(\d{1,9})\}?(?!\d)")
VALUE = re.compile(
    r"([-+]?)\s*(?:(?:(\d+)\s+(?:and\s+)?)?(\(?)\s*(-?\d+)\s*/\s*(-?\d+)\s*\)?"
    r"|(\d+\.?\d*|\.\d+)(?:[eE]([-+]?\d\d?)|\s*(?:\\times|\\cdot|×|\*)\s*10\s*\^\s*\{?([-+]?\d\d?)\}?(?!\d))?)(?![.\d])"
)
NUMBER = re.compile(
    r"(?:(?<![\w)}])[-−])?\$?(?:\\[dt]?frac\{\d+\}\{\d+\}|\d+\s+\d+/\d+"
    r"|(?:\d+(?:(?:,|\{,\}|\\,|\\!|,\\!)\d+)*(?:\.\d+)?|(?<!\w)\.\d+)(?:/\d+|[eE][-+]?\d+)?)"
    rf"(?:\s+(?:{'|'.join(SCALES)})\b)?%?",
    re.IGNORECASE,
)


def spelled(text: str) -> tuple[Fraction, str] | None:
    """(value, rest) of a text that begins with a number in words: twenty-four apples, three hundred and five."""
    found = SPELLED.match(text)
    if not found:
        return None
    total, group, room = 0, 0, 10**15  # room: what the next word must be below
    for word in re.split(r"[\s-]+", found.group().lower()):
        if word in SMALL and SMALL[word] < room:
            group, room = group + SMALL[word], 10 if SMALL[word] >= 20 else 0
        elif word == "hundred" and 0 < group < 100:
            group, room = 100 * group, 100
        elif word in SCALES and group:
            total, group, room = total + group * SCALES[word], 0, min(1000, SCALES[word])
        elif word != "and" or room < 100:
            return None
    value, rest = Fraction(total + group), text[found.end() :]
    if part := _PART.match(rest):
        if bool(part[2]) != (value != 1):
            return None  # twenty fifth
        value, rest = value / PARTS[part[1].lower().replace("halve", "half")], rest[part.end() :]
    return value, rest


def _repeating(found: re.Match) -> str:
    """0.1\\overline{6} as the fraction that it is."""
    whole, fixed, period = found.groups()
    value = Fraction(int(period), 10 ** len(fixed) * (10 ** len(period) - 1)) + Fraction(f"{whole or 0}.{fixed or 0}")
    return f" {value.numerator}/{value.denominator}"


def as_number(text: str) -> Fraction | None:
    """The exact value of a text that is one number: signs, separators, fractions, currency and units allowed."""
    if len(text) > LONGEST:
        return None
    text = WRAPPED.sub(r" \1", MARKUP.sub("", DEGREE.sub("°", text))).replace("\\%", "%").replace("−", "-")
    text = SEPARATED.sub(lambda found: re.sub(r"\D", "", found.group()), text)
    text = REPEATING.sub(_repeating, text)
    text = FRACTION.sub(lambda found: " " + "/".join(filter(None, found.groups())), text)
    text = re.sub(r"\\[,;:! ]|\\quad|~", " ", text).strip("{} ").rstrip(".")
    if in_words := spelled(text):
        value, rest = in_words
        return value if len(rest.split()) <= 3 and not UNSURE.search(rest) and _is_unit(rest) else None
    found = VALUE.match(text)
    if not found or text[found.end() :].strip() and bool(found[3]) != text[: found.end()].rstrip().endswith(")"):
        return None
    sign, whole, _, top, bottom, decimal, *powers = found.groups()
    if bottom is not None and not int(bottom):
        return None
    value = Fraction(decimal) if bottom is None else Fraction(int(whole or 0)) + Fraction(int(top), int(bottom))
    value *= Fraction(10) ** int(next(filter(None, powers), 0))
    rest = text[found.end() :]
    if scaled := re.match(rf"\s+({'|'.join(SCALES)})\b", rest, re.IGNORECASE):
        value, rest = value * SCALES[scaled[1].lower()], rest[scaled.end() :]
    return (-value if sign == "-" else value) if _is_unit(rest) else None


def _is_unit(text: str) -> bool:
    """Whether what follows a number is its unit: words, which may hold other numbers behind "of", "for", "per"."""
    words = re.findall(r"/|[^\s/]+", text)
    for i, word in enumerate(words):
        name = re.sub(r"\W|\d", "", word)
        if re.fullmatch(r"\$?\d[\d,]*(?:\.\d+)?", word) or word.lower() in SMALL:
            noun = words[i - 2] if i >= 2 and JOINT.fullmatch(words[i - 1]) else ""
            if not noun.isalpha() or JOINT.fullmatch(noun):
                return False
            continue
        joined = i == 0 and not text[0].isspace()
        short = 0 < len(name) < (4 if joined else 3 if i == 0 else 2) and word != "a" and word[0] != "°"
        if short and (joined and len(name) == 1 or not SHORT_UNIT.fullmatch(name)) or NO_UNIT.fullmatch(name.lower()):
            return False
        if not WORD.fullmatch(word.rstrip(".,").replace(".", "")):
            return False
    return True


def same_value(ours: Fraction, theirs: Fraction) -> bool:
    """Equal, or the same but for the rounding of a value with more than three decimals."""
    exact = all(1000 % value.denominator == 0 for value in (ours, theirs))
    return ours == theirs or (not exact and abs(ours - theirs) <= abs(theirs) / 10_000)


def with_its_unit(answer: str, text: str) -> str:
    """`5m` as `5 m` where the text names the unit and never uses the letter as a variable; else as it is."""
    joined = JOINED.match(answer)
    if not joined:
        return answer
    letter = joined[2]
    variable = re.search(
        rf"(?<![A-Za-z\\]){letter}\s*[=^_+*/<>-]|[=(+*/<>^-]\s*{letter}(?![A-Za-z])|(?:\$|\\\()\s*{letter}\s*(?:\$|\\\))",
        text,
    )
    named = re.search(rf"\b(?:{NAMED[letter.lower()]})", text, re.IGNORECASE)
    return f"{joined[1]} {letter}" if named and not variable else answer
