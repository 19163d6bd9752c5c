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
    names = {key: _text(value) for key, value in settings.items() if key.endswith("_token") and value}
    special = read_json(model / "special_tokens_map.json") or {}
    names = {key: _text(value) for key, value in special.items() if isinstance(value, str | dict)} | names
    return Prompts(template, config.system, names)


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


def _text(token: str | dict[str, Any]) -> str:
    """A special token as text."""
    return token if isinstance(token, str) else token["content"]
