"""Prompts: the plain format, and chats rendered as transformers renders them."""

import pytest
from transformers import AutoTokenizer

from tests.conftest import ROOT
from workbench.config import PromptConfig
from workbench.core.prompts import Prompts, messages, render
from workbench.prompting import open_prompts

POCKET = ROOT / "data" / "pocket" / "model"
TEMPLATE = """{%- if messages[0].role != 'system' %}
    {{- bos_token }}<|system|>Be brief.
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'user' and loop.first and not message.content %}
        {{- raise_exception('empty question') }}
    {%- endif %}
    {%- if message.role == 'tool' %}{% continue %}{% endif %}
    <|{{ message.role }}|>{{ message.content | trim }}{{ {'a': 1, 'ä': '<'} | tojson }}
{% endfor %}
{%- if add_generation_prompt %}<|assistant|>
{% endif %}"""
SHOTS = (("1 + 1?", "1 + 1 = 2. The answer is 2."), ("2 + 2?", "The answer is 4."))


def test_plain_few_shot():
    text = Prompts().prompt("3 + 3?", SHOTS)
    assert text == (
        "Question: 1 + 1?\nAnswer: 1 + 1 = 2. The answer is 2.\n\n"
        "Question: 2 + 2?\nAnswer: The answer is 4.\n\n"
        "Question: 3 + 3?\nAnswer:"
    )
    assert Prompts().response("  six ") == " six"


@pytest.mark.parametrize("system", ["", "Think."])
@pytest.mark.parametrize("shots", [(), SHOTS])
def test_a_chat_is_rendered_as_transformers_does(system, shots):
    tokenizer = AutoTokenizer.from_pretrained(POCKET)
    tokenizer.bos_token = "<s>"
    turns = messages("How many < 3 & > 1?", shots, system)
    ours = render(TEMPLATE, turns, {"bos_token": "<s>"})
    theirs = tokenizer.apply_chat_template(turns, chat_template=TEMPLATE, add_generation_prompt=True, tokenize=False)
    assert ours == theirs
    assert Prompts(TEMPLATE, system, {"bos_token": "<s>"}).prompt("How many < 3 & > 1?", shots) == ours


def test_a_template_that_refuses_or_reaches_out_is_one_sentence():
    with pytest.raises(ValueError, match=r"chat template fails: empty question; set prompt.format to plain"):
        Prompts(TEMPLATE).prompt("")
    with pytest.raises(ValueError, match="chat template fails"):
        Prompts("{{ messages.__class__.__mro__[1].__subclasses__() }}").prompt("?")


def test_blocks_for_trainers_change_no_text():
    template = """{% for m in messages %}{% if m.role == 'assistant' %}
    {% generation %}{% set x = 1 %}
    {{ m.content }}{% if true %} yes{% endif %}
{% endgeneration %}{{ x is defined }}{{ documents is none }}
{% else %}<{{ m.content }}>{% endif %}{% endfor %}"""
    turns = messages("3 + 3?", SHOTS)
    tokenizer = AutoTokenizer.from_pretrained(POCKET)
    theirs = tokenizer.apply_chat_template(turns, chat_template=template, add_generation_prompt=True, tokenize=False)
    assert render(template, turns, {}) == theirs and "1 + 1 = 2" in theirs


@pytest.mark.parametrize(
    "broken",
    [
        "{{ 1 + messages }}",
        "{{ 1 / 0 }}",
        "{{ messages['no'].content.x }}",
        "{{ '%d' | format('x') }}",
        "{% generation %}",
    ],
)
def test_whatever_a_template_fails_of_is_one_sentence(broken):
    with pytest.raises(ValueError, match=r"^the model's chat template fails: .*; set prompt.format to plain$"):
        Prompts(broken).prompt("?")


def test_a_prompt_does_not_depend_on_the_day():
    assert Prompts("{{ strftime_now('%d %b %Y') }}").prompt("?") == "26 Jul 2024"


def test_the_template_of_a_directory_is_found_wherever_it_lies(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(POCKET)
    chat = PromptConfig(format="chat")
    with pytest.raises(ValueError, match="no chat template, so it is no instruct model; set prompt.format to plain"):
        open_prompts(chat, POCKET)
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}{{ eos_token }}"
    tokenizer.save_pretrained(tmp_path)
    found = open_prompts(chat, tmp_path)
    assert found.prompt("Hm?") == f"Hm?{tokenizer.eos_token}" and found.is_whole
    assert found.response(" six ") == "six"
