"""Checkpoints through an fsspec URL: whole or not at all, checked, and gone on with where they were cut off."""

import json
from pathlib import Path

import pytest

fsspec = pytest.importorskip("fsspec")

from workbench.cluster import storage  # noqa: E402


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(storage, "PIECE", 1000)
    made = tmp_path / "run" / "checkpoint"
    (made / "deep").mkdir(parents=True)
    (made / "model.safetensors").write_bytes(bytes(range(256)) * 13)  # 3,328 bytes: four pieces
    (made / "deep" / "config.json").write_text("{}")
    (made / "empty.txt").touch()
    return made


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_what_is_fetched_is_what_was_published(folder, tmp_path):
    url = f"file://{tmp_path}/store"
    storage.publish(folder, url)
    storage.fetch_into(tmp_path / "out", str(folder), url)
    assert contents(tmp_path / "out") == contents(folder)


def test_an_upload_that_was_cut_off_sends_only_what_is_missing(folder, tmp_path, monkeypatch):
    url, sent = f"file://{tmp_path}/store", []
    storage.publish(folder, url)
    (tmp_path / "store" / f"{storage._name(folder)}.json").unlink()
    pieces = sorted((tmp_path / "store" / "pieces").iterdir())
    pieces[0].unlink()
    files = fsspec.filesystem("file")
    send = type(files).pipe_file
    monkeypatch.setattr(
        type(files), "pipe_file", lambda self, path, *a, **k: (sent.append(path), send(self, path, *a, **k))
    )
    storage.publish(folder, url)
    assert len([path for path in sent if "/pieces/" in path]) == 1
    assert sorted((tmp_path / "store" / "pieces").iterdir()) == pieces


def test_a_download_that_was_cut_off_goes_on(folder, tmp_path, monkeypatch):
    url, read = f"file://{tmp_path}/store", []
    storage.publish(folder, url)
    part = tmp_path / ".out.tmp"
    part.mkdir()
    weights = (folder / "model.safetensors").read_bytes()
    (part / "model.safetensors").write_bytes(weights[:2500])  # two whole pieces, half a third
    (part / "left.over").touch()
    files = fsspec.filesystem("file")
    get = type(files).cat_file
    monkeypatch.setattr(
        type(files), "cat_file", lambda self, path, *a, **k: (read.append(path), get(self, path, *a, **k))[1]
    )
    out = storage.fetch(str(folder), url, tmp_path / "out")
    assert len([path for path in read if "/pieces/" in path]) == 3  # two of the weights, one of the config
    assert contents(folder).items() <= contents(out).items()
    assert not (out / "left.over").exists()


def test_a_piece_that_has_changed_is_refused(folder, tmp_path):
    url = f"file://{tmp_path}/store"
    storage.publish(folder, url)
    manifest = json.loads((tmp_path / "store" / f"{storage._name(folder)}.json").read_text())
    piece = tmp_path / "store" / "pieces" / manifest["model.safetensors"][1]
    piece.write_bytes(b"x" * 1000)
    with pytest.raises(ValueError, match=r"does not have the hash it is named by; remove it"):
        storage.fetch(str(folder), url, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_nobody_published_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"/never/was is not in file://"):
        storage.fetch("/never/was", f"file://{tmp_path}", tmp_path / "out")
