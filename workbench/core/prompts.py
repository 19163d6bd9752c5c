"""How a question becomes a prompt, and a solution a response.

Two formats: plain text, or the chat template that an instruct model brings along. Both take worked
examples (few-shot chain of thought) or none.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import Any

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

TODAY = datetime(2024, 7, 26)
"""What a chat template is told of the date, so that no prompt depends on when it was made. It is the one that
Llama 3's template takes where it is told none."""
FAILURES = (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RuntimeError)
"""What a template may raise."""
Shots = Sequence[tuple[str, str]]
"""Worked examples: (question, solution)."""


@dataclass(frozen=True)
class Prompts:
    """The texts of one model in one format."""

    template: str | None = None
    """The model's chat template (Jinja); None is the plain format."""
    system: str = ""
    """A system message for the chat template; empty leaves it to the template."""
    tokens: Mapping[str, str] = field(default_factory=dict)
    """What the template may name: bos_token, eos_token, ..."""

    @property
    def is_whole(self) -> bool:
        """Whether a prompt holds its special tokens already, so that a tokenizer must not add any."""
        return self.template is not None

    def prompt(self, question: str, shots: Shots = ()) -> str:
        """The text to continue.

        Raises:
            ValueError: the chat template refuses these messages.
        """
        if self.template is not None:
            return render(self.template, messages(question, shots, self.system), self.tokens)
        worked = "".join(f"{instruction_prompt(q)}{response(s)}\n\n" for q, s in shots)
        return worked + instruction_prompt(question)

    def response(self, solution: str) -> str:
        """The text that follows a prompt; in the plain format the leading space belongs to it."""
        return solution.strip() if self.is_whole else response(solution)


def instruction_prompt(question: str) -> str:
    """The plain format."""
    return f"Question: {question}\nAnswer:"


def response(solution: str) -> str:
    """What follows a plain prompt."""
    return " " + solution.strip()


def messages(question: str, shots: Shots = (), system: str = "") -> list[dict[str, str]]:
    """A question with its worked examples as the turns of a chat."""
    turns = [{"role": "system", "content": system}] if system else []
    for asked, solution in shots:
        turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": solution.strip()}]
    return [*turns, {"role": "user", "content": question}]


def render(template: str, turns: Sequence[Mapping[str, str]], tokens: Mapping[str, str]) -> str:
    """A chat as its template has it, up to where the answer begins. Templates run in a sandbox.

    The variables and functions are those that transformers offers to templates, but that today is always `TODAY`:
    https://huggingface.co/docs/transformers/main/en/chat_templating_writing

    Raises:
        ValueError: the template is broken, or refuses these messages.
    """
    given = {"messages": turns, "add_generation_prompt": True, "tools": None, "documents": None}
    try:
        return _compiled(template).render(**given, **tokens)
    except FAILURES as error:
        said = str(error) or type(error).__name__
        raise ValueError(f"the model's chat template fails: {said}; set prompt.format to plain") from error


class _Generation(Extension):
    """`{% generation %}`, which tells a trainer what the assistant said: the text in it is left as it is."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


@lru_cache(maxsize=8)
def _compiled(template: str) -> Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {"raise_exception": _refuse, "strftime_now": TODAY.strftime}
    return environment.from_string(template)


def _refuse(message: str) -> None:
    raise TemplateError(message)


def _to_json(value: Any, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=False, **options)
