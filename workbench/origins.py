"""Where the values of a run's settings come from, which every plan says: a preset, a file, --set, or the defaults."""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from workbench import checkpoints
from workbench.config import RunConfig
from workbench.section import Section
from workbench.settings import REQUIRED, SHORT_NAMES, as_text, assignment, build_config, load_settings, preset_names

Source = str | Path | None
"""A preset's name, a file of settings, or nothing."""


def told(config: RunConfig, source: Source, names: Collection[str]) -> dict[str, Any]:
    """What a plan says of its settings, as JSON. `names`: what was set beside the source, short or dotted.

    settings: those that differ from the documented defaults, and the required ones, which have none.
    """
    preset = str(source) if str(source) in preset_names() else None
    origin = f"preset {preset}" if preset else f"file {source}" if source else "no preset"
    defaults = dict(_values(build_config({name: getattr(config, name) for name in REQUIRED})))
    rows = [
        {
            "setting": name,
            "value": value,
            "default": None if name in REQUIRED else defaults[name],
            "origin": "--set" if any(_covers(given, name) for given in names) else origin,
        }
        for name, value in _values(config)
        if name in REQUIRED or value != defaults[name]
    ]
    return {"preset": preset, "settings_from": origin, "settings": rows, "notes": _notes(config, preset)}


def lines(said: Mapping[str, Any]) -> list[str]:
    """`told` for people: where the settings come from, then a line for each that is not as documented, as
    `--set` takes it."""
    found = [f"Settings: {said['settings_from']}. The documented defaults hold, but for:"]
    for row in said["settings"]:
        name = row["setting"]
        before = "required" if name in REQUIRED else f"default {as_text(row['default'])}"
        found.append(f"  {assignment(name, row['value'])}  ({before}; {row['origin']})")
    return found


def _notes(config: RunConfig, preset: str | None) -> list[str]:
    """A preset's values suit the model that it was made for."""
    own = load_settings(preset).get("model", config.model)
    if checkpoints.absolute_model(own) == checkpoints.absolute_model(config.model):
        return []
    return [
        f"preset {preset} is made for {own}, and its values may not suit {config.model}: look at each of them, or take "
        "no preset, where the documented defaults hold"
    ]


def _values(section: Section, before: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting under its dotted name, as JSON has it."""
    dumped = section.model_dump(mode="json")
    for name, field in type(section).model_fields.items():
        if isinstance(field.default, Section):
            yield from _values(getattr(section, name), f"{before}{name}.")
        else:
            yield before + name, dumped[name]


def _covers(given: str, name: str) -> bool:
    """Whether setting `given` set `name`: itself, a part of it (sft.lora.rank), or the section around it."""
    given = SHORT_NAMES.get(given, given)
    return f"{name}.".startswith(f"{given}.") or f"{given}.".startswith(f"{name}.")
