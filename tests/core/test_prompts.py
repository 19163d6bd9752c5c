"""Prompts: the plain format, and chats rendered as transformers renders them."""

import json
import shutil

import pytest
from transformers import AutoTokenizer

from tests.conftest import CASES, ROOT, needs_cases
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


ADDED = {"__type": "AddedToken", "content": "<s>", "lstrip": False, "normalized": False, "rstrip": False}


@pytest.mark.parametrize(
    ("settings", "special"),
    [
        ({"bos_token": "<|pad|>", "add_bos_token": True, "add_eos_token": False}, None),
        ({"bos_token": ADDED, "image_token": "<image>", "unk_token": None}, None),
        ({"bos_token": "<s>", "image_token": {"id": 5}, "sound_token": 7, "video_token": None}, None),
        ({"bos_token": "<s>", "extra_special_tokens": {"image_token": "<image>", "sound": "<sound>"}}, None),
        ({"bos_token": "<s>", "additional_special_tokens": ["<a>", "<b>"]}, None),
        ({"bos_token": "<s>"}, {"bos_token": {"content": "<pad>", "special": True}, "cls_token": "<cls>"}),
        ({"bos_token": "<s>"}, {"bos_token": None, "additional_special_tokens": ["<a>"], "sound_token": "<sound>"}),
        ({"bos_token": "<s>", "added_tokens_decoder": {}}, {"bos_token": "<pad>", "cls_token": "<cls>"}),
    ],
)
def test_a_template_may_name_what_transformers_lets_it(tmp_path, settings, special):
    folder = tmp_path / "model"
    shutil.copytree(POCKET, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    names = ("bos_token", "eos_token", "cls_token", "image_token", "sound_token", "video_token", "sound")
    names += ("add_bos_token", "additional_special_tokens", "extra_special_tokens")
    shown = "".join(f"{name}={{{{ {name} if {name} is defined else 'undefined' }}}};" for name in names)
    template = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %} " + shown
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings | {"chat_template": template}))
    if special is not None:
        (folder / "special_tokens_map.json").write_text(json.dumps(special))
    theirs = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        messages("3 + 3?"), add_generation_prompt=True, tokenize=False
    )
    assert open_prompts(PromptConfig(format="chat"), folder).prompt("3 + 3?") == theirs


@needs_cases
def test_a_tokenizer_that_adds_bos_has_it_once_in_a_chat():
    prompt = open_prompts(PromptConfig(format="chat"), CASES / "models" / "c_bos").prompt("3 + 3?")
    tokenizer = AutoTokenizer.from_pretrained(CASES / "models" / "c_bos")
    assert prompt == tokenizer.apply_chat_template(messages("3 + 3?"), add_generation_prompt=True, tokenize=False)
    assert prompt.startswith(tokenizer.bos_token) and prompt.count(tokenizer.bos_token) == 1
