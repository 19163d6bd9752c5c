"""What a sentence of a solution says: the number, formula or few words that are its answer; and what a text ends on."""

import re

from workbench.core.numbers import LONGEST, NUMBER, SPELLED, as_number

RESULT = re.compile(rf"[\d)%>]\s*=\s*({NUMBER.pattern})", re.IGNORECASE)
OPERAND = re.compile(r"\d\s*(?:[*×÷+]|\s[-/x])\s*\$?[\d.,]+$")
CONCLUSION = re.compile(
    r"\W*(?:so|thus|therefore|hence|altogether|finally|in (?:total|all|conclusion))\b", re.IGNORECASE
)
FINISHED = re.compile(r"[\d.!?)%}\]$*°\"']$")
SENTENCES = re.compile(r"\n+|(?<=[.!?])\s+")
VERB = re.compile(
    r".*\b(?:is|are|was|were|be|equals|has|have|find|finds|get|gets|gives?|yields?|obtain)\b\s*"
    r"(?:that )?(?:thus |therefore |then )?(?:only|exactly|a total of|equal to)?\s*",
    re.DOTALL,
)
COPULA = re.compile(r"\b(?:is|are|was|were|be|equals)\b[^.]{0,30}$")
_FORMULA = r"\$+[^$]+\$+|\\\(.+?\\\)|\\\[.+?\\\]"
FORMULA = re.compile(_FORMULA, re.DOTALL)
LIST = re.compile(rf"(?:{_FORMULA})(?:(?:\s*,\s*(?:and|or)?\s*|\s+(?:and|or)\s+)(?:{_FORMULA}))*", re.DOTALL)
COUNT = re.compile(rf"(?:{SPELLED.pattern})(?!\s+(?:of|that|wh\w+|more|less|another|or|and|to)\b)", re.IGNORECASE)
COUNTED = re.compile(rf"{VERB.pattern}{COUNT.pattern}", re.DOTALL | re.IGNORECASE)
EXACTLY = re.compile(rf"\b(?:exactly|a total of)\s+({COUNT.pattern}|\d+(?![\d.,]*\d))", re.IGNORECASE)
THERE_ARE = re.compile(
    rf"(?:\w+,?\s+)?there (?:is|are)\s+(?:only |exactly |a total of )?"
    rf"({COUNT.pattern}|\d[\d,]*(?![\d./%^*]))(?=\s[a-z])",
    re.IGNORECASE,
)
ENDS_IN_RESULT = re.compile(rf"[\d)%>]\s*=\s*({NUMBER.pattern})(?:\s[a-z]+){{0,3}}$", re.IGNORECASE)
REMARK = re.compile(
    r"\W*(?:if|since|because|as|let|suppose|assume|given|note|notice|recall|remember|when|where|for|we|first|next|now"
    r"|check|but|wait|consider|this|that|these|it|i|step)\b|.*\?$",
    re.IGNORECASE,
)
_LINES = r"\{(?:align|aligned|equation|gather)\*?\}"
DISPLAYED = re.compile(
    rf"(?:\\\[|\$\$|\\begin{_LINES})((?:(?!\\\[|\$\$).)*?)(?:\\end{_LINES}\s*)?(?:\\\]|\$\$|\\end{_LINES})\W*$",
    re.DOTALL,
)


def first_sentence(text: str) -> str:
    """The text up to the end of its line, sentence or displayed formula.

    A dot inside a number or abbreviation ends nothing.
    """
    if displayed := re.match(r"\s*(?:\\\[|\$\$)(.+?)(?:\\\]|\$\$)", text, re.DOTALL):
        return " ".join(displayed[1].split()).rstrip(".,;")
    line = text.strip().split("\n")[0]
    end = re.search(r"(?<!\bMr)(?<!\bMs)(?<!\bDr)(?<!\bMrs)(?<![a-z]\.[a-z])\.(?:\s+[A-Z]|\s*$)|[!?](?:\s|$)", line)
    line = line[: end.start()] if end else re.split(r'</|",?$', line)[0]
    return line.strip().rstrip(",;").strip("*").strip()


def core_of(sentence: str) -> str:
    """Of a sentence in words, the formula, number or few words behind its last verb; any other text as it is."""
    if as_number(sentence) is not None or not re.search(r"[A-Za-z]{3}.*\s", sentence):
        return sentence
    if result := ENDS_IN_RESULT.search(sentence.rstrip(".")):
        return result[1]
    verb = VERB.match(sentence)
    tail = sentence[verb.end() :] if verb else sentence
    if verb and (count := COUNT.match(tail)):
        return count.group()
    if (listed := LIST.match(tail)) and verb:
        return ", ".join(map(_bare, FORMULA.findall(listed.group())))
    formulas = FORMULA.findall(tail)
    if len(formulas) == 1:
        return _bare(formulas[0])
    number = NUMBER.match(tail)
    if verb and number and not re.match(r"\W*(?:or|and|to|,|-)\W*\d", tail[number.end() :]):
        return number.group()
    if len(counts := EXACTLY.findall(sentence)) == 1:
        return counts[0]
    few = (
        verb
        and COPULA.search(verb.group())
        and len(tail.split()) <= 3
        and len(sentence.split()) > len(tail.split()) + 2
    )  # not "They are equal"
    return tail if few else sentence


def is_formula(text: str) -> bool:
    """Whether a text is one short line of mathematics, without words."""
    return (
        bool(text) and len(text) <= LONGEST and "\n" not in text and not re.search(r"(?<![\\A-Za-z])[A-Za-z]{3}", text)
    )


def is_short(text: str) -> bool:
    """Whether a text is a number or mathematics, not words."""
    return as_number(text) is not None or is_formula(text) and bool(re.search(r"[\d\\=]", text))


def _bare(formula: str) -> str:
    """A formula without its dollars or brackets."""
    return re.sub(r"^(?:\$+|\\[(\[])|(?:\$+|\\[)\]])$", "", formula).strip()


def closing_number(text: str) -> str | None:
    """The number that a text ends on, of several in its last sentence the calculated one.

    None where the number is an operand: the calculation was cut off.
    """
    closing = next((s for s in reversed(SENTENCES.split(text)) if re.search(r"[\d$]", s)), "")
    numbers = [found.group() for found in NUMBER.finditer(closing)]
    if not numbers or OPERAND.search(text[-200:]):
        return None
    results = RESULT.findall(closing)
    if not results and CONCLUSION.match(closing):
        calculated = RESULT.findall(text)
        value = as_number(calculated[-1]) if calculated else None
        results = [number for number in numbers if value is not None and as_number(number) == value]
    return results[-1] if results else numbers[-1]


def closing_formula(text: str) -> str | None:
    """What a text on mathematics ends on: the result of a displayed equation, or what its last sentence says."""
    text = text.replace("**", "").rstrip()
    if displayed := DISPLAYED.search(text):
        last = re.split(r"\\\\(?![a-z])", displayed[1].strip().removesuffix("\\\\"))[-1].replace("&", "")
        told = re.search(r"\b(?:is|are|equals|be|get)\s*:?\s*$", text[: displayed.start()])
        return _right_side(last) if "=" in last or told else None
    said = (s for s in reversed(SENTENCES.split(text)) if re.search(r"[\d$]|\\\(", s) or COUNTED.match(s))
    closing = next(said, "")
    sentence = first_sentence(closing)
    concluded = CONCLUSION.match(sentence)
    said = sentence[concluded.end() :].strip(" ,:") if concluded else sentence
    if result := ENDS_IN_RESULT.search(said):
        return result[1]
    if (counted := THERE_ARE.match(said)) and text.endswith(closing) and not re.search(r"\d|\$", said[counted.end() :]):
        return counted[1]
    core = _bare(said) if FORMULA.fullmatch(said) else core_of(said)
    if core == said or REMARK.match(said) and not concluded:
        return None
    ends = len(said.rpartition(core)[2].split()) <= 3
    return core if concluded or VERB.match(said) and ends and text.endswith(closing) else None


CLOSING = {"number": closing_number, "math": closing_formula, "text": closing_number}


def _right_side(equation: str) -> str | None:
    """Of `a = b = c` the c; None of several equations."""
    *left, right = equation.split("=")
    several = re.search(r"\\q?quad|\\text\s*\{|,(?![^()]*\))", " ".join(left)) or re.search(r"\\q?quad|[<>]", right)
    return None if several else right.strip().rstrip(".,").strip() or None
