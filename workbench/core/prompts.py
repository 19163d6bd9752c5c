"""How a question becomes a prompt, and a solution a response."""

from collections.abc import Sequence

STOP_STRINGS = ("\nQuestion:",)
"""Where a model goes on with a question of its own, its answer has ended."""


def instruction_prompt(question: str) -> str:
    """The plain format used for fine-tuning, evaluation and zero-shot sampling."""
    return f"Question: {question}\nAnswer:"


def few_shot_prompt(question: str, examples: Sequence[tuple[str, str]]) -> str:
    """Chain-of-thought prompt: worked (question, solution) examples, then the question."""
    shots = "".join(f"{instruction_prompt(q)}{response(s)}\n\n" for q, s in examples)
    return shots + instruction_prompt(question)


def response(solution: str) -> str:
    """The text that follows a prompt; the leading space belongs to the response."""
    return " " + solution.strip()
