"""Equality of mathematical expressions by math-verify, in a process of its own with a time limit.

One hostile expression can keep a computer algebra system busy for ever; here it costs `TIMEOUT_S`, the
process is replaced, and the pair counts as not equal. Pairs go over pipes as JSON lines.
"""

import atexit
import json
import re
import select
import subprocess
import sys
from functools import lru_cache

TIMEOUT_S = 5.0
START_TIMEOUT_S = 60.0
LONGEST = 400
"""Longer expressions are not compared symbolically."""
GREEK = r"\\(?:pi|alpha|beta|gamma|delta|theta|lambda|mu|phi|omega)(?![a-z])"
BARE_FRACTION = re.compile(rf"(\\[dt]?frac)\s*({GREEK}|\w)\s*(?:({GREEK}|\w)|(?={{))")
BARE_ROOT = re.compile(rf"\\sqrt\s*({GREEK})")
_worker: subprocess.Popen | None = None


@lru_cache(maxsize=100_000)
def symbolically_equal(answer: str, reference: str) -> bool:
    """Whether two LaTeX or plain expressions are equal."""
    global _worker
    if max(len(answer), len(reference)) > LONGEST:
        return False
    if _worker is None:
        _worker = subprocess.Popen(
            [sys.executable, "-m", "workbench.core.symbolic"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        atexit.register(close)
        _ask("1", "1", START_TIMEOUT_S)  # importing takes longer than comparing
    try:
        return _ask(answer, reference, TIMEOUT_S)
    except (TimeoutError, BrokenPipeError, ValueError):
        close()
        return False


def close() -> None:
    """End the worker; the next comparison starts another."""
    global _worker
    if _worker is not None:
        _worker.kill()
        _worker.communicate()
        _worker = None


def _ask(answer: str, reference: str, timeout_s: float) -> bool:
    """Send a pair to the worker and wait for its word."""
    _worker.stdin.write(json.dumps([answer, reference]).encode() + b"\n")
    _worker.stdin.flush()
    if not select.select([_worker.stdout], [], [], timeout_s)[0]:
        raise TimeoutError
    return json.loads(_worker.stdout.readline())


def braced(text: str) -> str:
    """`\\frac\\pi4` as `\\frac{\\pi}{4}`: math-verify drops what it cannot read, so unlike texts would be equal."""
    text = BARE_FRACTION.sub(lambda found: f"{found[1]}{{{found[2]}}}" + (f"{{{found[3]}}}" if found[3] else ""), text)
    return BARE_ROOT.sub(r"\\sqrt{\1}", text)


def _equal(answer: str, reference: str) -> bool:
    """In the worker. What math-verify cannot read is not equal."""
    from math_verify import parse, verify

    try:
        gold = parse(f"${braced(reference)}$", parsing_timeout=None)
        found = parse(f"${braced(answer)}$", parsing_timeout=None)
        return bool(gold and found) and bool(verify(gold, found, timeout_seconds=None))
    except Exception:  # a computer algebra system raises anything on odd input
        return False


if __name__ == "__main__":
    for line in sys.stdin:
        sys.stdout.write(json.dumps(_equal(*json.loads(line))) + "\n")
        sys.stdout.flush()
