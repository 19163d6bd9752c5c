"""Several methods on the same seeds and the same sampled base data: a group of runs, launched into the queue."""

import secrets
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench import launch, preflight
from workbench.checks import check
from workbench.config import RunConfig, TeacherConfig
from workbench.core.methods import arm_name
from workbench.settings import ConfigError, build_config

ARMS: dict[str, dict[str, Any]] = {
    "vanilla": {"method": "vanilla"},
    "mixture": {"method": "mixture"},
    "accumulation": {"method": "accumulation"},
    "imm": {"method": "imm"},
    "real": {"method": "vanilla"},
    "mixed": {"method": "vanilla"},
    "distillation": {"method": "vanilla"},
}
"""What can be compared, and its method; distillation needs `teacher.model`, mixed takes `data.real_share` or a half."""


def arms(
    settings: Mapping[str, Any], changes: Mapping[str, Any], methods: Sequence[str], seeds: Sequence[int]
) -> list[RunConfig]:
    """The configs of a comparison, every method of one seed before the next seed.

    Raises:
        ConfigError: an unknown or repeated method or seed, or a setting that is wrong.
    """
    if unknown := [name for name in methods if name not in ARMS]:
        raise ConfigError(f"methods: {unknown[0]!r} is none; they are {', '.join(ARMS)}")
    for name, values in (("methods", methods), ("seeds", seeds)):
        if not values or len(set(values)) < len(values):
            raise ConfigError(f"{name} must name at least one, and none twice; got {', '.join(map(str, values))}")
    group = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(2)}"
    found = []
    for seed in seeds:
        for name in methods:
            config = build_config(settings, {**changes, **ARMS[name], "seed": seed, "group": group})
            found.append(_told_apart(config, name, methods, build_config(settings, changes).data.real_share))
    return found


def _told_apart(config: RunConfig, name: str, methods: Sequence[str], real_share: float) -> RunConfig:
    """An arm that differs from the others in its method alone: beside distillation they sample for themselves, beside
    real or mixed data they learn from samples alone. `real_share` is what was asked for, which `mixed` takes."""
    if name == "distillation" and not config.teacher.model:
        raise ConfigError("method distillation needs a teacher: set teacher.model")
    if name != "distillation" and "distillation" in methods:
        config = config.model_copy(update={"teacher": TeacherConfig()})
    if name == "mixed":
        share = real_share if 0 < real_share < 1 else 0.5
    elif name == "real":
        share = 1.0
    else:
        share = 0.0 if {"real", "mixed"} & set(methods) else real_share
    return config.model_copy(update={"data": config.data.model_copy(update={"real_share": share})})


def launch_all(configs: Sequence[RunConfig], root: Path, *, once_s: float = 0.0) -> list[str]:
    """Launch every run of a comparison, or none where one could not go well; their ids.

    With `once_s`, a double click launches them once.

    Raises:
        ValueError: what makes one of them impossible.
    """
    since = time.time() - once_s
    for config in configs:
        if problems := check(config, root):
            raise ValueError(f"{arm_of(config)}, seed {config.seed}: {problems[0]}")
    if problem := preflight.disk_problem(configs, root):
        raise ValueError(problem)
    if configs and configs[0].on == "ray":  # they differ in nothing that a cluster has or has not
        launch.look_around(configs[0], root)
    return launch.enqueue(configs, root, since=since if once_s else None)


def arm_of(config: RunConfig) -> str:
    """What a run is called in a comparison."""
    return arm_name(config.method, config.data.real_share, config.teacher.model)


def numbers(text: str) -> list[int]:
    """Seeds out of a text, as in 0,1,2.

    Raises:
        ConfigError: something else in it.
    """
    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise ConfigError(f"seeds are whole numbers with commas between, as in 0,1,2; got {text!r}") from None
