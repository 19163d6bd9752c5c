"""Settings from presets, TOML or JSON files and `key=value` texts to checked configs; errors in plain words."""

import json
import shlex
import tomllib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import ValidationError

from workbench.config import AnalyzeConfig, MergeConfig, RunConfig, Section
from workbench.redact import redacted, refuse_secrets

PRESETS = Path(__file__).parent / "presets"
FACTS = PRESETS / "facts.json"
"""Public config.json values of the presets' models; rows of the data sets where they are read from, mean lengths."""
REQUIRED = tuple(name for name, field in RunConfig.model_fields.items() if field.is_required())
"""Settings that have no default."""
Checked = TypeVar("Checked", bound=Section)

SHORT_NAMES = {
    "alpha": "merge.alpha",
    "drop_rate": "merge.drop_rate",
    "temperatures": "sample.temperatures",
    "num_samples": "sample.num_samples",
    "epochs": "sft.epochs",
    "learning_rate": "sft.learning_rate",
    "eval_questions": "evaluate.num_questions",
}
"""Plain names that `--set` accepts for settings that live in a section."""


class ConfigError(ValueError):
    """A setting is wrong; the message names it, its value and the allowed range."""


class NotHere(ValueError):
    """Rows, a package or a server that a run needs and this machine lacks; the settings themselves may be right."""


def preset_names() -> list[str]:
    """The presets shipped with the package."""
    return sorted(path.stem for path in PRESETS.glob("*.toml"))


def load_preset(name: str | None) -> dict[str, Any]:
    """The settings of a preset: a name, never a path; without one none, so that the defaults hold.

    Raises:
        ConfigError: no such preset.
    """
    if name is not None and name not in preset_names():
        raise ConfigError(f"no preset {name!r}; presets are: {', '.join(preset_names())}")
    return load_settings(name)


def load_settings(source: str | Path | None) -> dict[str, Any]:
    """The settings in a preset (by name), or in a TOML or JSON file; None has none, so that the defaults hold.

    Raises:
        ConfigError: no such preset or file, or not valid TOML or JSON.
    """
    if source is None:
        return {}
    path = PRESETS / f"{source}.toml" if str(source) in preset_names() else Path(source)
    if not path.is_file():
        raise ConfigError(f"no preset or file {str(source)!r}; presets are: {', '.join(preset_names())}")
    try:
        text = path.read_text(encoding="utf-8")
        return json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (ValueError, OSError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error


@lru_cache
def facts(part: str) -> Mapping[str, Mapping[str, Any]]:
    """What is shipped about the presets' models ("models") or the known data sets ("tasks")."""
    return json.loads(FACTS.read_text(encoding="utf-8"))[part]


def parse_assignments(assignments: Sequence[str]) -> dict[str, Any]:
    """`key=value` texts to settings; a value is JSON where it parses as such, else text.

    Raises:
        ConfigError: an assignment without `=`.
    """
    settings: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set wants key=value, got {redacted(assignment)!r}")
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        settings[key.strip()] = value
    return settings


def build_config(settings: Mapping[str, Any], changes: Mapping[str, Any] | None = None) -> RunConfig:
    """A checked config from settings and changes under short or dotted names.

    Raises:
        ConfigError: naming every setting that is wrong.
    """
    nested = json.loads(json.dumps(settings))
    for name, value in (changes or {}).items():
        *sections, last = SHORT_NAMES.get(name, name).split(".")
        target = nested
        for section in sections:
            if target.get(section) is None:  # absent, or switched off as with lora: null
                target[section] = {}
            target = target[section]
            if not isinstance(target, dict):
                raise ConfigError(f"{name} is not a setting: {section} has no parts")
        target[last] = value
    return _validated(RunConfig, nested)


def merge_config(settings: Mapping[str, Any]) -> MergeConfig:
    """The checked settings of one merge.

    Raises:
        ConfigError: naming every setting that is wrong.
    """
    return _validated(MergeConfig, settings)


def analyze_config(settings: Mapping[str, Any]) -> AnalyzeConfig:
    """The checked settings of one analysis of layers.

    Raises:
        ConfigError: naming every setting that is wrong.
    """
    return _validated(AnalyzeConfig, settings)


def _validated(section: type[Checked], settings: Mapping[str, Any]) -> Checked:
    try:
        refuse_secrets(settings)  # before anything else can be wrong, whose message would show the value
        return section.model_validate(settings)
    except ValidationError as error:
        found = error.errors()
        said = [_explain(section, e) for e in found if e["type"] != "missing"]
        if lacking := [".".join(map(str, e["loc"])) for e in found if e["type"] == "missing"]:
            said.insert(0, _lacking(lacking))
        raise ConfigError("; ".join(said)) from error
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _explain(section: type[Section], error: Mapping[str, Any]) -> str:
    """One pydantic error as a sentence with the setting's name and value."""
    name = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        for part in error["loc"][:-1]:
            kinds = section.model_fields[part].annotation
            section = next((kind for kind in get_args(kinds) if kind is not type(None)), kinds)
        return f"unknown setting {name!r}; known here: {', '.join(section.model_fields)}"
    message = error["msg"].removeprefix("Value error, ")
    if not name or isinstance(error["input"], Mapping):  # a whole section, which may hold what nobody should see
        return f"{name}: {message}" if name else message
    return f"{name}: {message}, got {error['input']!r}"


def _lacking(names: Sequence[str]) -> str:
    """Required settings that nobody gave, as a sentence with the cure."""
    how = " ".join(f"--set {name}=..." for name in names)
    return (
        f"{' and '.join(names)} must be given, there is no default: {how}, or take a preset (--preset pocket tries "
        "everything out)"
    )


def setting(config: RunConfig, name: str) -> Any:
    """The value of a setting under its short or dotted name, as JSON would have it."""
    value: Any = config.model_dump(mode="json")
    for part in SHORT_NAMES.get(name, name).split("."):
        value = value[part]
    return value


def as_text(value: Any) -> str:
    """A value as `--set` takes it."""
    return value if isinstance(value, str) else json.dumps(value)


def assignment(name: str, value: Any) -> str:
    """`key=value` as `--set` takes it, quoted for a shell."""
    return shlex.quote(f"{name}={as_text(value)}")


def changed(preset: str | None, config: RunConfig, names: Sequence[str]) -> list[str]:
    """Those of `names` whose value is not that of the preset, or without one, not the default."""
    given = load_preset(preset)
    before = build_config({name: setting(config, name) for name in REQUIRED} | given)
    return [
        name
        for name in names
        if (name in REQUIRED and name not in given) or setting(config, name) != setting(before, name)
    ]


def command(preset: str | None, config: RunConfig, names: Sequence[str]) -> str:
    """The `workbench run` command for a preset, or none, with those of `names` set in which the config differs."""
    words = ["workbench run", *([f"--preset {preset}"] if preset else [])]
    return " ".join(
        words + [f"--set {assignment(name, setting(config, name))}" for name in changed(preset, config, names)]
    )
