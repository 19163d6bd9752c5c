"""Where a path that came from the screen may lead: the home, this project's data, and directories that were named.

Whoever starts the app names them in WORKBENCH_MODEL_DIRS. A terminal and a notebook go anywhere their user may.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from workbench.config import RunConfig
from workbench.redact import redacted, refuse_secrets

NAMED = "WORKBENCH_MODEL_DIRS"
PROJECT = Path(__file__).parents[1]
NO_PATHS = {
    "group", "ray.address", "prompt.system", "prompt.stop", "sample.examples", "teacher.url", "sft.lora.target_modules",
    "merge.modules",
}  # fmt: skip
"""Settings that are free texts, and are never opened."""


def readable(home: Path) -> list[Path]:
    """The directories that the screen may open."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return [home, home / "datasets", PROJECT / "data", Path(HF_HUB_CACHE), *_named()]


def writable(home: Path) -> list[Path]:
    """The directories that the screen may write checkpoints to."""
    return [home / "exports", *_named()]


def _named() -> list[Path]:
    return [Path(name).expanduser() for name in os.environ.get(NAMED, "").split(os.pathsep) if name.strip()]


def confine(name: str, home: Path, what: str, roots: Sequence[Path] | None = None) -> str:
    """The name, where it is none of a path or leads to where the screen may go.

    Raises:
        ValueError: it leads elsewhere, or holds a secret; whether anything is there is not said.
    """
    refuse_secrets(name, what)
    if not name.isprintable():
        raise ValueError(f"{what} {name!r} has characters that no name has; leave them out")
    roots = readable(home) if roots is None else roots
    try:
        given = Path(name).expanduser()
        free = not given.is_absolute() and ".." not in given.parts and not name.startswith("~")
        inside = [_is_within(place, roots) for place in _places(given, home) if not free or os.path.lexists(place)]
    except RuntimeError as error:  # ~ of nobody
        raise ValueError(f"{what} {name!r} is no path: {error}") from None
    if not all(inside):
        allowed = ", ".join(str(root) for root in roots)
        raise ValueError(
            f"{what} {redacted(name)!r} leads out of what this screen may use ({allowed}); put it there, or have its "
            f"directory named in {NAMED} where the app is started"
        )
    return name


def _places(given: Path, home: Path) -> Iterator[Path]:
    """Everything that a name is looked for as."""
    for base in (Path.cwd(), PROJECT, home / "datasets"):
        yield base / given


def _is_within(place: Path, roots: Sequence[Path]) -> bool:
    real = place.resolve()
    return any(real.is_relative_to(root.resolve()) for root in roots)


def _local_path(url: str | None) -> str | None:
    """The path of a URL that leads to this machine's own files; none of another."""
    kind, _, path = (url or "").partition("://")
    return path if kind.rpartition("::")[2] in ("file", "local") else None


def confine_config(config: RunConfig, home: Path) -> RunConfig:
    """The config, where all its paths lead to where the screen may go.

    Raises:
        ValueError: naming the first setting that does not.
    """
    found = {
        "model": [config.model],
        "start": [config.start],
        "teacher.model": [None if config.teacher.url else config.teacher.model],
        "train_task": [config.train_task],
        "eval_tasks": config.eval_tasks,
        "datasets": [config.datasets],
        "analyze.task": [config.analyze.task],
        "analyze.text": [config.analyze.text],
        "sft.hostfile": [config.sft.hostfile],
        "ray.storage": [_local_path(config.ray.storage)],
    }
    for setting, names in found.items():
        for name in filter(None, names):
            confine(name, home, setting)
    return config
