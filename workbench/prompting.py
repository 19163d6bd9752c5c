"""The prompts of a model directory: plain, or by the chat template that lies in it. Imports no transformers."""

import json
from pathlib import Path
from typing import Any

from workbench.config import PromptConfig, TeacherConfig
from workbench.core.prompts import Prompts
from workbench.rundir import read_json


def open_prompts(config: PromptConfig, model: Path) -> Prompts:
    """How questions are put to the model in a directory.

    Raises:
        ValueError: the chat format is asked for, and the model brings no chat template.
    """
    if config.format == "plain":
        return Prompts()
    settings = read_json(model / "tokenizer_config.json") or {}
    template = _template(model, settings)
    if template is None:
        raise ValueError(f"{model} has no chat template, so it is no instruct model; set prompt.format to plain")
    return Prompts(template, config.system, _tokens(model, settings))


def sampling_format(prompt: PromptConfig, teacher: TeacherConfig) -> PromptConfig:
    """How whoever samples is asked: as the run's own model, or in the teacher's format; a chat has the run's system
    message either way."""
    if not teacher.model:
        return prompt
    system = prompt.system if teacher.format == "chat" else ""
    return PromptConfig(format=teacher.format, system=system, stop=prompt.stop)


def _template(model: Path, settings: dict[str, Any]) -> str | None:
    """The default chat template of a tokenizer, from its own file or from its settings."""
    if (file := model / "chat_template.jinja").exists():
        return file.read_text(encoding="utf-8")
    if (file := model / "chat_template.json").exists():
        return json.loads(file.read_text(encoding="utf-8"))["chat_template"]
    found = settings.get("chat_template")
    if isinstance(found, list):
        found = next((entry["template"] for entry in found if entry["name"] == "default"), None)
    return found


def _tokens(model: Path, settings: dict[str, Any]) -> dict[str, str]:
    """What a chat template may name (bos_token, image_token, ...), as transformers 5 finds it in the files.

    Of all settings whose name ends in _token those that are a text: add_bos_token is a switch. The file
    special_tokens_map.json is older: it is read where the settings list no added tokens, and then it wins.
    """
    if "added_tokens_decoder" not in settings:
        settings = settings | (read_json(model / "special_tokens_map.json") or {})
    named = {key: value for key, value in settings.items() if key.endswith("_token")}
    for key in ("model_specific_special_tokens", "additional_special_tokens", "extra_special_tokens"):
        named |= found if isinstance(found := settings.get(key), dict) else {}  # a list names nothing
    return {key: text for key, value in named.items() if (text := _text(value)) is not None}


def _text(token: Any) -> str | None:
    """A special token as text, also where it is written down with its properties; None for anything else."""
    found = token.get("content") if isinstance(token, dict) else token
    return found if isinstance(found, str) else None
