"""The final answer of a solution: where it stands, and whether it is right.

Where it is looked for, in this order: the last `\\boxed{...}`; behind `####`; in the last <answer> tag; behind the
last "the answer is"; for multiple choice, a letter called correct or chosen, else the last one that stands as an
option; a text that is nothing but an answer; for numbers, the number that closes a text that was not cut off. What
stands before a next question counts first. A text without any of these has no answer, which is better than a
wrong one.
"""

import html
import itertools
import re
from dataclasses import dataclass

from workbench.core.numbers import NUMBER, as_number, same_value, with_its_unit
from workbench.core.sentences import CLOSING, FINISHED, RESULT, core_of, first_sentence, is_formula, is_short
from workbench.core.symbolic import LETTER, WRAPPED, same_writing, symbolically_equal


@dataclass(frozen=True)
class Grade:
    """What was found, by which rule, and whether it equals the reference."""

    answer: str | None
    is_correct: bool
    rule: str


TRAILING = re.compile(r"[\s.\\]+$")
IN_FORMULA = re.compile(r"[a-z](?![A-Za-z])|\s*[*+^_]|\s*\\(?:cdot|times|sqrt|pi)\b")
NO_TEXT = re.compile(r"(?:(?:```|</?\w*\s*/?>)\s*)+$")
NEXT_QUESTION = re.compile(
    r"\n[^\w\n]{0,9}(?:user|human|question|problem|query|instruction|q)\s*\d*\W{0,3}:|\n\n[^\n]{40,}\?[ \t]*(?=\n)",
    re.IGNORECASE,
)
NEXT_PROBLEM = re.compile(
    r"\n[ \t]*\n(?=[A-Z$\\])(?!(?:Wait|But|However|So|Therefore|Thus|Hence|Let's|Let us|Let me|Now|To|We|This|That|Is"
    r"|Are|Do|Does|Can|Could|Did|Why|Maybe|Perhaps|Alternatively|Actually|Since|Note|Check|Also|Next|Then|Finally)\b|\\\[)"
    r"(?:(?:(?!\b(?:I|[Ww]e|our|[Ll]et's|answer|above|problem|question|wait)\b)[^\n?]){40,800}?(?:\?|\(\s+\)|_{3,})"
    r"|(?:Find|Determine|Calculate|Compute|Solve|Evaluate|Simplify|Express|Prove|Write)\b[^\n]{40,})"
)
"""A paragraph that poses another problem, where it stands behind a boxed answer."""
TAG = re.compile(
    r"(?<![/\w.])(?:<\s*answer(?:\s+\w+\s*=\s*\"([^\"]*)\")?\s*/?>|answer\s*>)(.*?)(?=<\s*/|<\s*end|<\s*answer|$)",
    re.DOTALL | re.IGNORECASE,
)
_NO_ANSWER = (
    r"[\s.…_?*()<>{}\[\]\"'-]*(?:(?:the|your|my|final|correct|numerical|answer|result|solution|goes|comes|here|insert|put"
    r"|write|in|this)\b[\s.…_?*()<>{}\[\]\"'-]*)*"
)
PLACEHOLDER = re.compile(_NO_ANSWER, re.IGNORECASE)
"""What a prompt shows in the place of an answer: a model that echoes it has given none."""
EMPTY_BOX = re.compile(rf"\\f?boxed\s*\{{(?:\\text\s*\{{)?{_NO_ANSWER}\}}", re.IGNORECASE)
END = re.compile(r"<\|(?:endoftext|im_end|eot_id|end_of_text|end)\|>|</s>")
ENTITY = re.compile(r"&[A-Za-z]{2,8};")
METHOD = re.compile(r"\W*(?:To|We|Let|First|Since|Using|By|If|When|In order|Note)\b")
STATED = re.compile(
    r"(?:answer|(?:correct|right|best) (?:option|choice))(?:\s*\([^()\n]{1,40}\)|\s+(?:to|for)\s[^.:=\n]{1,80}?)?"
    r"[\"'*_]*\s*(?:is|:|=|(?:must|should|would|will) be)(?:\s+(?:therefore|thus|hence|then|simply|exactly|equal to))?"
    r"(?![a-mo-z]|n[a-z])(?!\s+(?:\w+ly\s+)?(?:(?:in)?correct|wrong|inside|expressed|written|formatted)\b)\s*:?\s*[\"*]*"
    r"|(?:^|\n)[#* \t]*(?:final +)?answer[*:]*[ \t]*\n\s*",
    re.IGNORECASE,
)
DENIED = re.compile(r"\W*n(?:ot|['’]t)\b\W*(?:[-−]?\d|[A-J]\b)")
TWO_LETTERS = re.compile(r"^\W*[A-J]\W*(?:,|or|and|/|&)\W*[A-J]\b(?!['’])")
CHOSEN = re.compile(
    r"\b([A-HJ])\)?,?\s+(?:is|must be)\s+(?:the\s+)?(?:correct|right|best|answer)\b"
    r"|\b(?:choose|pick|select|go(?:ing)? with)\s+(?:(?:option|choice|answer)\s+)?\(?([A-HJ])\b(?!['’])"
    r"|\b(?:[Ss]o|[Tt]hus|[Tt]herefore|[Hh]ence),?\s+\(?([A-HJ])\b\W*$"
)
MARKED = re.compile(r"\(([A-Ja-j])\)|(?:^|\n)[ \t*]*([A-J])[.):](?:\s|$)|^\W*(?:[Oo]ption |[Cc]hoice )?([A-J])\W*$")


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
    ended = END.split(text, maxsplit=1)[0]
    text = ENTITY.sub(
        lambda found: html.unescape(found.group()), ended if ended.strip() and "<|" not in ended else text
    )
    answer, rule = _extract(_this_problem(text), answer_format)
    for i, question in enumerate(itertools.islice(NEXT_QUESTION.finditer(text), 5)):
        before = text[: question.start()]
        first, first_rule = _extract(_this_problem(before), answer_format)
        sure = first_rule == "boxed" or i == 0 and (first_rule in ("####", "stated") or RESULT.search(before))
        if first is not None and sure:
            answer, rule = first, first_rule
            break
    return (with_its_unit(answer, text) if answer and answer_format != "choice" else answer), rule


def _this_problem(text: str) -> str:
    """The text without another problem behind the boxed answer."""
    another = NEXT_PROBLEM.search(text, len(text.partition("\\boxed")[0]))
    return text[: another.start()] if another else text


def _extract(text: str, answer_format: str) -> tuple[str | None, str]:
    """The same for a text that holds one question's solution."""
    text = EMPTY_BOX.sub("", text)
    boxed = last_boxed(text)
    if boxed:
        return _shaped(boxed, answer_format), "boxed"
    if boxed is None and re.search(r"\\f?boxed\s*\{", text):
        return None, "none"  # cut off in the box
    if "####" in text:
        line = text.rpartition("####")[2].strip().split("\n")[0]
        return _said(line, answer_format), "####"
    bodies = [(attribute + body).strip() for attribute, body in TAG.findall(text)]
    tagged = [body for body in bodies if not PLACEHOLDER.fullmatch(body)]
    answer = _from_sentences(tagged[-1].split("\n\n")[0], answer_format) if tagged else None
    if answer is not None:
        return answer, "stated"
    if stated := list(STATED.finditer(text)):
        rest = text[stated[-1].end() :]
        sentence = first_sentence(rest)
        denied = DENIED.match(sentence)
        answer = None if denied else _said(sentence, answer_format)
        if answer_format == "math" and METHOD.match(sentence):
            answer = _from_sentences(rest.split("\n\n")[0], answer_format)
        settled = answer_format == "number" and (
            denied or re.match(r"(?:between |either |from )?[\s(\\$]*\d", sentence)
        )
        if answer is not None or settled or answer_format == "choice" and TWO_LETTERS.match(sentence):
            return answer, "stated"  # several numbers or letters are no answer
        text = rest[len(sentence) :] if denied and answer_format == "choice" else text
    if answer_format == "choice":
        marks = [next(filter(None, groups)) for groups in CHOSEN.findall(text) or MARKED.findall(text)]
        return (marks[-1].upper(), "letter") if marks else (None, "none")
    text = NO_TEXT.sub("", text[-4000:].strip()).strip()
    if as_number(text) is not None or answer_format == "math" and is_formula(text):
        return text, "last number"
    if FINISHED.search(text) and (answer := CLOSING[answer_format](text)):
        return answer, "last number"
    return None, "none"


def _from_sentences(text: str, answer_format: str) -> str | None:
    """The answer in the last sentence; in mathematics in the last that gives one, rather than asks or goes on."""
    if answer_format == "math" and re.match(r"[^\n]*:\s*\n", text) and (closing := CLOSING["math"](text)):
        return closing  # a calculation, line by line
    sentences = re.split(r"(?<=[.!?])\s+(?=[A-Z(])", text)
    answers = []
    for sentence in reversed(sentences if answer_format == "math" else sentences[-1:]):
        stated = list(STATED.finditer(sentence))
        said = first_sentence(sentence[stated[-1].end() :] if stated else sentence)
        answers.append(_said(said, answer_format))
        goes_on = answers[-1] in (None, said) and not is_short(said) or sentence.endswith("?") or METHOD.match(sentence)
        if not goes_on:
            break
    return answers[0] if goes_on else answers[-1]


def _said(sentence: str, answer_format: str) -> str | None:
    """The answer that a sentence gives."""
    return _shaped(core_of(sentence) if answer_format == "math" else sentence, answer_format)


def _shaped(answer: str, answer_format: str) -> str | None:
    """An answer as its format wants it: a letter, a number without words around it, or as it stands."""
    answer = TRAILING.sub("", answer.strip())
    if answer_format == "choice":
        letters = WRAPPED.sub(r"\1", answer)
        found = None if TWO_LETTERS.match(letters) else LETTER.match(letters)
        return found.group(1).upper() if found else None
    if answer_format == "number" and as_number(answer) is None:
        result = answer.rpartition("=")[2]
        found = list(NUMBER.finditer(result))
        if (
            not found
            or IN_FORMULA.match(result[found[0].end() :])
            or re.search(r"[*+/^]\s*$", result[: found[0].start()])
        ):
            return None
        alone = len(found) == 1 or "=" in answer or as_number(result[found[0].start() :]) is not None
        return found[0].group() if alone else None
    return answer or None


def is_correct(answer: str, reference: str, answer_format: str) -> bool:
    """Whether an extracted answer equals the reference."""
    if answer_format == "choice":
        return answer.upper() == reference.strip().upper()
    ours, theirs = as_number(answer), as_number(reference)
    if ours is not None and theirs is not None:
        if same_value(ours, theirs):
            return True
        percent = ["%" in text or "percent" in text for text in (answer, reference)]
        return percent[0] != percent[1] and same_value(ours / (1 + 99 * percent[0]), theirs / (1 + 99 * percent[1]))
    if answer_format == "number":
        return False
    same = same_writing(answer, reference)
    if same is None and answer_format == "math":
        return symbolically_equal(answer, reference)
    return bool(same)


def grade(text: str, reference: str, answer_format: str, finished: bool = True) -> Grade:
    """Extract and compare. A text that was cut off has an answer only where that stands whole before the cut."""
    answer, rule = extract_answer(text, answer_format)
    if not finished and answer is not None and rule != "boxed":
        at_the_end = text.rstrip().rstrip(".$*").endswith(answer.rstrip(".$*"))
        if at_the_end or rule in ("last number", "letter"):
            answer, rule = None, "none"
    right = answer is not None and is_correct(answer, reference, answer_format)
    return Grade(answer, right, rule)
