"""Equality of answers that are no plain numbers: as they are written, else as expressions by math-verify.

math-verify works in processes of its own with a time limit: one hostile expression can keep a computer algebra
system busy for ever; here it costs `TIMEOUT_S`, the process is replaced, and the pair counts as not equal. Threads
that ask at once have a process each, which others use after them. Pairs go over pipes as JSON lines.
"""

import atexit
import contextlib
import json
import re
import select
import subprocess
import sys
from collections import deque
from functools import lru_cache

TIMEOUT_S = 5.0
START_TIMEOUT_S = 60.0
LONGEST = 400
"""Longer expressions are not compared symbolically."""
LONGEST_SOLUTION = 20_000
GREEK = r"\\(?:pi|alpha|beta|gamma|delta|theta|lambda|mu|phi|omega)(?![a-z])"
BARE_FRACTION = re.compile(rf"(\\[dt]?frac)\s*({GREEK}|\w)\s*(?:({GREEK}|\w)|(?={{))")
BARE_ROOT = re.compile(rf"\\sqrt\s*({GREEK})")
WRAPPED = re.compile(r"\\(?:text|mathrm|mathbf|textbf|textit|mbox|boldsymbol)\s*\{([^{}]*)\}")
# A small "a" is an option only where something marks it as one; else it is an article.
LETTER = re.compile(r"^\W*(?:(?i:option|choice|letter)\W+)?([A-Jb-hj](?!['’\w])|[ai](?=\s*(?:[).:,;*\]]|$)))")
WORDS = re.compile(r"^(?:\\text\{)?\s*[A-Za-z][A-Za-z'.]+(?:[\s-]+[A-Za-z'.]+)*\s*\}?$")
CLOCK = re.compile(r"^0?(\d{1,2})(?::(\d\d)(?::(\d\d))?)?(?:([ap])\.?m\.?)?$", re.IGNORECASE)
PAIR, SET = re.compile(r"^\([^()]*,[^()]*\)$"), re.compile(r"^\\\{[^|:<>]*,[^|:<>]*\}$")
MODULUS = re.compile(r"(?:\\pmod\{?\d+\}?|\((?:\\b?mod|mod)\{?\d+\}?\))$")
IN_BASE = re.compile(r"^(\w+)_\{?(\d+)\}?$")
MONOMIAL, NUMERAL = re.compile(r"^-?[\d.]+[a-z](?:\^\{?\d+\}?)?$"), re.compile(r"^-?[\d.]+$")
NOISE = re.compile(r"\\left|\\right|\\!|\\,|\\;|\\ |\\\$|\$|\s|~|\\displaystyle")
DEGREE = re.compile(r"\^\s*\{?\s*\\circ\s*\}?|°|\\degrees?\b")
ORDER = r"\s*(<=?|≤|\\leq?(?![a-z])|\\lt(?![a-z]))\s*"
BETWEEN = re.compile(rf"^([^<≤]+?){ORDER}[a-z]{ORDER}([^<≤]+)$")
INTERVAL = re.compile(r"\s*(?:\\left\s*)?(?:[\[(]|\\?\{\s*[a-z]\s*(?:\\mid|\\vert|\||:|\\in))|[a-z]\s*\\in\b")
BUILDER = re.compile(r"^\\?\{\s*([a-z])\s*(?:\\in\s*\\mathbb\{?R\}?)?\s*(?:\\mid|\\vert|\||:)\s*(.+?)\s*\\?\}$")
MEMBER = re.compile(r"^[a-z]\s*\\in\s*(?=[\[(])")
EITHER = re.compile(r"(?<=[\])])\s*U\s*(?=[\[(])|\s*\\cup\s*|\s+or\s+|\\lor|\\vee")
INFINITE = re.compile(r"(?<![a-zA-Z\\])(?:oo|inf(?:inity|ty)?)(?![a-zA-Z])|∞")
BEYOND = re.compile(r"^[a-z]\s*(<=?|>=?|≤|≥|\\[lg]eq?(?![a-z])|\\[lg]t(?![a-z]))\s*([^<>≤≥]+)$")
_idle: deque[subprocess.Popen] = deque()
"""The processes that nobody asks just now."""
_all: set[subprocess.Popen] = set()


def same_writing(answer: str, reference: str) -> bool | None:
    """Whether two answers are the same as written, or as an option, a time, a numeral in a base, a text.

    None where that does not decide: they may be equal expressions.
    """
    ours, theirs = _plain(answer), _plain(reference)
    if bool(MODULUS.search(ours)) != bool(MODULUS.search(theirs)):  # 5 modulo 7 is the residue 5
        ours, theirs = MODULUS.sub("", ours), MODULUS.sub("", theirs)
    if ours == theirs:
        return True
    if re.fullmatch(r"\([a-j]\)", theirs):  # an option: "B", "(B) 12"
        letter = LETTER.match(WRAPPED.sub(r"\1", answer))
        return letter is not None and letter.group(1).lower() == theirs[1]
    if (clock := CLOCK.match(ours)) and (other := CLOCK.match(theirs)):
        return _same_time(clock, other)
    if (based := IN_BASE.match(ours)) and (other := IN_BASE.match(theirs)):
        return based.groups() == other.groups()
    if any(PAIR.match(a) and SET.match(b) for a, b in ((ours, theirs), (theirs, ours))):
        return False
    if any(MONOMIAL.match(a) and NUMERAL.match(b) for a, b in ((ours, theirs), (theirs, ours))):
        return False  # math-verify reads the s of 2s as seconds
    return False if WORDS.match(answer) or WORDS.match(reference) else None


def _plain(text: str) -> str:
    """A text without what does not matter: spaces, layout commands, case, closing dot."""
    text = re.sub(r"\\(?:overline|overleftrightarrow|overrightarrow)\s*\{\s*([A-Za-z]+)\s*\}", r"\1", text)
    text = re.sub(r"\\[dt]frac", r"\\frac", WRAPPED.sub(r"\1", text)).replace("\\varnothing", "\\emptyset")
    text = NOISE.sub("", text).rstrip(".").casefold()
    return {"noon": "12:00pm", "midnight": "12:00am"}.get(text, text)


def _same_time(ours: re.Match, theirs: re.Match) -> bool:
    """3:30 p.m. is 15:30, and 3:30 where one side does not say which half of the day."""
    hour, minute, second, half = ours.groups()
    other_hour, other_minute, other_second, other_half = theirs.groups()
    hours = int(hour) % 12 + 12 * (half == "p") if half else int(hour)
    other_hours = int(other_hour) % 12 + 12 * (other_half == "p") if other_half else int(other_hour)
    either_half = bool(half) != bool(other_half) and 1 <= (other_hours if half else hours) <= 12
    same_hour = hours == other_hours or either_half and (hours - other_hours) % 12 == 0
    rest, other_rest = (minute or "00", second or "00"), (other_minute or "00", other_second or "00")
    return same_hour and rest == other_rest


@lru_cache(maxsize=100_000)
def symbolically_equal(answer: str, reference: str) -> bool:
    """Whether two LaTeX or plain expressions are equal."""
    if max(len(answer), len(reference)) > LONGEST:
        return False
    if bool(DEGREE.search(answer)) != bool(DEGREE.search(reference)):  # the question asked for degrees
        answer, reference = DEGREE.sub("", answer), DEGREE.sub("", reference)
    return bool(_ask(["equal", answer, reference]))


@lru_cache(maxsize=20_000)
def second_opinion(text: str, reference: str, answer_format: str) -> tuple[str | None, bool]:
    """(answer, is_correct) as math-verify has it, which finds the answer in the whole text by rules of its own."""
    if len(text) > LONGEST_SOLUTION:
        return None, False
    found = _ask(["opinion", text, reference, answer_format])
    return tuple(found) if found else (None, False)


@atexit.register
def _end_all() -> None:
    for worker in list(_all):
        _end(worker)


def _end(worker: subprocess.Popen) -> None:
    worker.kill()
    worker.communicate()
    _all.discard(worker)


def _ask(question: list[str]) -> object:
    """What a process says; None where it takes too long, or two of them die.

    Raises:
        ChildProcessError: none can be started.
    """
    for _ in range(2):  # what killed the first need not be the question
        worker = _take()
        try:
            said = _exchange(worker, question, TIMEOUT_S)
        except TimeoutError:
            _end(worker)
            return None
        except (BrokenPipeError, ValueError):
            _end(worker)
        except BaseException:  # as Ctrl-C: what it still says would be taken for the next answer
            _end(worker)
            raise
        else:
            _idle.append(worker)
            return said
    return None


def _take() -> subprocess.Popen:
    """A process that nobody asks, or a new one."""
    while _idle:
        with contextlib.suppress(IndexError):  # another thread took it
            worker = _idle.pop()
            if worker.poll() is None:
                return worker
            _end(worker)
    return _start()


def _start() -> subprocess.Popen:
    worker = subprocess.Popen(
        [sys.executable, "-m", "workbench.core.symbolic"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is not for it
    )
    _all.add(worker)
    try:  # its first comparison takes longer than others
        _exchange(worker, ["equal", "x + x", "2x"], START_TIMEOUT_S)
    except (TimeoutError, BrokenPipeError, ValueError) as error:
        _end(worker)
        raise ChildProcessError(
            "math-verify, which compares answers that are no plain numbers, does not start; to see why: "
            """echo '["equal", "x + x", "2x"]' | python -m workbench.core.symbolic"""
        ) from error
    except BaseException:
        _end(worker)
        raise
    return worker


def _exchange(worker: subprocess.Popen, question: list[str], timeout_s: float) -> object:
    """Send a question to a worker and wait for its word."""
    worker.stdin.write(json.dumps(question).encode() + b"\n")
    worker.stdin.flush()
    if not select.select([worker.stdout], [], [], timeout_s)[0]:
        raise TimeoutError
    return json.loads(worker.stdout.readline())


def braced(text: str) -> str:
    """`\\frac\\pi4` as `\\frac{\\pi}{4}`: math-verify drops what it cannot read, so unlike texts would be equal."""
    text = re.sub(r"√\s*(\d+|\([^()]*\))|(?<![\\a-z])sqrt\s*(\([^()]*\))", _root, text)
    text = (
        re.sub(r"(?<![\\A-Za-z])(pi|theta)(?![A-Za-z])", r"\\\1", text).replace("π", "\\pi ").replace("θ", "\\theta ")
    )
    text = BARE_FRACTION.sub(lambda found: f"{found[1]}{{{found[2]}}}" + (f"{{{found[3]}}}" if found[3] else ""), text)
    return BARE_ROOT.sub(r"\\sqrt{\1}", text)


def _root(found: re.Match) -> str:
    """√5, √(5) and sqrt(5) as LaTeX writes them."""
    return f"\\sqrt{{{(found[1] or found[2]).strip('()')}}}"


def as_interval(text: str) -> str:
    """`-2 \\le x < 7` as `[-2,7)`, `x > 3` and `\\{x | x > 3\\}` as `(3,\\infty)`, "or" between such as `\\cup`."""
    text = INFINITE.sub(r"\\infty", re.sub(r"\\left|\\right", "", WRAPPED.sub(r"\1", text))).strip()
    if built := BUILDER.match(text):
        text = built[2]
    if re.fullmatch(r"(?:all )?real numbers|\\mathbb\{?R\}?", text):
        return "(-\\infty,\\infty)"
    return r" \cup ".join(_one_interval(MEMBER.sub("", part.strip())) for part in EITHER.split(text))


def _one_interval(text: str) -> str:
    """The same for a text without "or"."""
    if found := BETWEEN.match(text):
        low, first, second, high = found.groups()
        closed = [order not in ("<", "\\lt") for order in (first, second)]
        return f"{'(['[closed[0]]}{low},{high}{')]'[closed[1]]}"
    if found := BEYOND.match(text):
        order, edge = found.groups()
        closed = order not in ("<", ">", "\\lt", "\\gt")
        below = order[0] in "<≤" or order.startswith("\\l")
        return f"(-\\infty,{edge}{')]'[closed]}" if below else f"{'(['[closed]}{edge},\\infty)"
    return text


def _equal(answer: str, reference: str) -> bool:
    """In the worker. What math-verify cannot read is not equal."""
    from math_verify import parse, verify

    if INTERVAL.match(answer) or INTERVAL.match(reference):
        answer, reference = as_interval(answer), as_interval(reference)
    try:
        gold = parse(f"${braced(reference)}$", parsing_timeout=None)
        found = parse(f"${braced(answer)}$", parsing_timeout=None)
        return bool(gold and found) and bool(verify(gold, found, timeout_seconds=None))
    except Exception:  # a computer algebra system raises anything on odd input
        return False


def _opinion(text: str, reference: str, answer_format: str) -> tuple[str | None, bool]:
    """In the worker. math-verify's own extraction and comparison, as its README calls them."""
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, StringExtractionConfig, parse, verify

    letters = StringExtractionConfig(strings=tuple("ABCDEFGHIJ"), lowercase=False)
    configs = [letters] if answer_format == "choice" else [LatexExtractionConfig(), ExprExtractionConfig()]
    gold = [letters] if answer_format == "choice" else configs
    try:
        expected = parse(reference if answer_format == "choice" else f"${reference}$", gold, parsing_timeout=None)
        text = re.sub(r"\(([A-J])\)", r"\1", text) if answer_format == "choice" else text  # it does not see "(B)"
        found = parse(text, configs, parsing_timeout=None)
        right = bool(expected and found) and bool(verify(expected, found, timeout_seconds=None))
        return (str(found[-1]) if found else None), right
    except Exception:  # as above
        return None, False


if __name__ == "__main__":
    for line in sys.stdin:
        work, *arguments = json.loads(line)
        sys.stdout.write(json.dumps({"equal": _equal, "opinion": _opinion}[work](*arguments)) + "\n")
        sys.stdout.flush()
