"""Checkpoints between nodes that share no path: pieces named by their hash behind an fsspec URL, a manifest last.

An upload that was cut off goes on with the pieces that are missing, a download with the bytes that are right;
what arrives is checked by hash. Equal pieces, as of a model's tokenizer in every checkpoint, are kept once.
"""

import json
import os
import shutil
import time
from collections.abc import Iterator
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from secrets import token_hex
from typing import Any

import fsspec
from filelock import FileLock

from workbench.cluster import here

PIECE = 64 * 2**20
"""Bytes of a file that are stored, fetched and hashed together."""
KEPT, IN_USE_S = 6, 3600.0
"""Fetched checkpoints that stay on a node, and others that were asked for within the last hour."""


def publish(folder: Path, url: str) -> None:
    """Copy a directory to `url`; nothing is sent twice, and readers see it when it is whole."""
    files, root = fsspec.core.url_to_fs(url)
    files.makedirs(f"{root}/pieces", exist_ok=True)
    there = {Path(name).name for name in files.ls(f"{root}/pieces", detail=False)}
    manifest: dict[str, Any] = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        pieces = manifest[str(file.relative_to(folder))] = []
        for data in _pieces(file):
            pieces.append(name := sha256(data).hexdigest())
            if name not in there:
                scratch = f"{root}/pieces/.{name}.{token_hex(4)}"
                files.pipe_file(scratch, data)
                files.mv(scratch, f"{root}/pieces/{name}")  # a piece under its name is whole
                there.add(name)
    text, name = json.dumps(manifest, indent=1).encode(), f"{root}/{_name(folder)}.json"
    if not files.exists(name) or files.cat_file(name) != text:
        scratch = f"{name}.{token_hex(4)}"
        files.pipe_file(scratch, text)
        files.mv(scratch, name)


def fetch(folder: str, url: str, out: Path) -> Path:
    """A published directory under `out`, which appears when it is whole; what is there already is kept.

    Raises:
        ValueError: nothing was published under that name, or a piece does not have the hash it is named by.
    """
    files, root = fsspec.core.url_to_fs(url)
    try:
        manifest = json.loads(files.cat_file(f"{root}/{_name(Path(folder))}.json"))
    except FileNotFoundError:
        raise ValueError(f"{folder} is not in {url}; was it written by another run, or removed there?") from None
    if not all(_is_inside(name) for name in manifest):
        raise ValueError(f"the manifest of {folder} in {url} names files outside of it; publish it anew")
    noted = json.dumps(manifest)
    mark = out / ".manifest"
    with FileLock(f"{out}.lock"):
        if mark.exists() and mark.read_text() == noted:
            return out
        scratch = out.with_name(f".{out.name}.tmp")
        for file in [path for path in scratch.rglob("*") if path.is_file()]:
            if str(file.relative_to(scratch)) not in manifest:
                file.unlink()
        for name, pieces in manifest.items():
            _fetch_file(files, root, pieces, scratch / name)
        (scratch / ".manifest").write_text(noted)
        _remove(out)
        scratch.rename(out)
    return out


def _is_inside(name: str) -> bool:
    return not Path(name).is_absolute() and ".." not in Path(name).parts


def _remove(fetched: Path) -> None:
    """Delete a fetched directory: what a kill leaves of it is never taken for whole."""
    (fetched / ".manifest").unlink(missing_ok=True)
    shutil.rmtree(fetched, ignore_errors=True)


def _fetch_file(files: Any, root: str, pieces: list[str], out: Path) -> None:
    """One file, from where an earlier attempt was cut off."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.touch()
    right = 0
    for data, name in zip(_pieces(out), pieces, strict=False):
        if sha256(data).hexdigest() != name:
            break
        right += len(data)
    with out.open("rb+") as file:
        file.truncate(right)
        file.seek(right)
        for name in pieces[-(-right // PIECE) :]:
            data = files.cat_file(f"{root}/pieces/{name}")
            if sha256(data).hexdigest() != name:
                raise ValueError(f"{root}/pieces/{name} does not have the hash it is named by; remove it and resume")
            file.write(data)


def _pieces(file: Path) -> Iterator[bytes]:
    with file.open("rb") as stream:
        while data := stream.read(PIECE):
            yield data


def _name(folder: Path) -> str:
    """What a directory is called in the storage: by its whole path, so that each has a name of its own."""
    return f"{folder.name}-{sha256(str(folder).encode()).hexdigest()[:16]}"


def fetch_into(out: Path, folder: str, url: str) -> None:
    """A published directory as one of the run's own."""
    fetch(folder, url, out)
    (out / ".manifest").unlink(missing_ok=True)
    Path(f"{out}.lock").unlink(missing_ok=True)


def cache_folder() -> Path:
    """Where this node keeps what it can fetch again."""
    return Path(os.environ.get("WORKBENCH_CACHE") or Path.home() / ".cache" / "workbench")


def publish_for_nodes(folder: Path) -> None:
    """Let the nodes see a checkpoint that this process has; nothing to do where they share the path."""
    if url := here().storage:
        _publish_once(folder, url, max(path.stat().st_mtime_ns for path in folder.rglob("*")))


@lru_cache(16)
def _publish_once(folder: Path, url: str, changed_at: int) -> None:
    """Nothing is hashed again that this process has sent."""
    publish(folder, url)


def seen_from_here(folder: str, url: str | None) -> Path:
    """A checkpoint as this node sees it: under its own path, or where there is a storage fetched from it.

    What was fetched is kept for whoever needs it next, of all that only the newest `KEPT`.
    """
    if url is None:
        return Path(folder)
    cache = cache_folder() / "checkpoints"
    cache.mkdir(parents=True, exist_ok=True)
    found = fetch(folder, url, cache / _name(Path(folder)))
    (found / ".manifest").touch()
    for mark in sorted(cache.glob("*/.manifest"), key=_age)[KEPT:]:
        if _age(mark) > IN_USE_S:
            with FileLock(f"{mark.parent}.lock"):
                _remove(mark.parent)
    return found


def _age(mark: Path) -> float:
    """Seconds since somebody asked for it."""
    try:
        return time.time() - mark.stat().st_mtime
    except FileNotFoundError:
        return 0.0
