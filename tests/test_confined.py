"""No path from the screen leads out of the home and the named directories, and run names are no paths."""

import json
import os
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest
from pydantic import BaseModel
from streamlit.testing.v1 import AppTest

from tests.conftest import ROOT, small_config
from workbench import launch, paths, screen
from workbench.config import RunConfig
from workbench.rundir import all_runs, find_run
from workbench.settings import ConfigError

SECRET = "top-secret-line"


@pytest.fixture
def outside(home, tmp_path_factory, monkeypatch):
    """A directory beside the home with something in it, and links in the home that lead there."""
    folder = tmp_path_factory.mktemp("outside")
    (folder / "test.jsonl").write_text(json.dumps({"question": SECRET, "answer": "1"}))
    (home / "link").symlink_to(folder)
    monkeypatch.delenv(paths.NAMED, raising=False)
    return folder


def leading_out(home, outside):
    """Names that lead out of the home."""
    up = os.path.relpath(outside, Path.cwd())
    return [str(outside), f"{outside}/test.jsonl", f"{home}/../{outside.name}", up, f"./{up}", f"{home}/link", "/etc",
            "~", "~root", "~nobody-of-that-name", "../../../../../../etc/passwd", "workbench", "README.md",
            "data/../workbench", "/nothing/here", "a\0b"]  # fmt: skip


def test_no_path_from_the_screen_leads_out(home, outside):
    for name in leading_out(home, outside):
        with pytest.raises(ValueError) as refused:
            paths.confine(name, home, "model")
        assert "\n" not in str(refused.value) and SECRET not in str(refused.value)
        for setting in ("model", "start", "teacher.model", "train_task", "eval_tasks", "datasets", "analyze.text",
                        "analyze.task", "sft.hostfile"):  # fmt: skip
            with pytest.raises(ValueError):
                screen.preset_config("pocket", {setting: name, "sft.zero": 2})


def test_what_is_there_and_what_is_not_are_refused_alike(home, outside):
    for name in (outside / "test.jsonl", outside / "nothing"):
        with pytest.raises(ValueError, match=r"leads out of what this screen may use .* WORKBENCH_MODEL_DIRS"):
            paths.confine(str(name), home, "model")


def test_the_home_the_projects_data_and_named_directories_are_open(home, outside, monkeypatch):
    (home / "datasets" / "mine").mkdir(parents=True)
    for name in ("gsm8k", "Qwen/Qwen2.5-0.5B", "data/pocket/model", str(home / "datasets" / "mine"), "./nowhere"):
        assert paths.confine(name, home, "model") == name
    monkeypatch.setenv(paths.NAMED, f"/nothing{os.pathsep}{outside}")
    assert paths.confine(str(outside / "test.jsonl"), home, "task")
    screen.preset_config("pocket", {"eval_tasks": [f"{outside}/test.jsonl"]})


def texts_of(section, prefix=""):
    """The settings of a config that hold free texts, by dotted name."""

    def parts(kind):
        return {kind}.union(*(parts(inner) for inner in get_args(kind) if get_origin(kind) is not Literal))

    for name, field in section.model_fields.items():
        kinds = parts(field.annotation)
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from texts_of(kind, f"{prefix}{name}.")
        if str in kinds:
            yield f"{prefix}{name}"


def test_every_text_of_a_config_is_confined_or_known_to_be_no_path(home, outside):
    found = {*texts_of(RunConfig)}
    assert {"model", "sft.hostfile", "eval_tasks"} <= found and found >= paths.NO_PATHS
    for setting in found - paths.NO_PATHS:
        value = f"file://{outside}" if setting == "ray.storage" else str(outside)
        with pytest.raises(ValueError, match="leads out"):
            screen.preset_config("pocket", {setting: value, "sft.zero": 2})


def test_a_checkpoint_is_written_to_the_exports_or_a_named_directory(home, outside, monkeypatch):
    roots = paths.writable(home)
    assert paths.confine(str(home / "exports" / "mine"), home, "it", roots)
    for name in ("runs/mine", "exports/../runs/mine", "link/mine", "workbench.duckdb"):
        with pytest.raises(ValueError, match="leads out"):
            paths.confine(str(home / name), home, "it", roots)
    for place in (ROOT / "data" / "pocket" / "model", outside / "x"):
        with pytest.raises(ValueError, match="leads out"):
            paths.confine(str(place), home, "it", roots)


def test_a_run_of_a_hostile_name_is_none(home):
    for name in (
        "../runs/x",
        "..",
        "x/../../etc",
        "/etc",
        "<img src=x onerror=alert(1)>",
        "a b",
        "",
        ".hidden",
        "A" * 200,
    ):
        with pytest.raises(ValueError, match="no run"):
            find_run(home, name)
        with pytest.raises(ValueError):
            launch.stop(home, name)
    hostile = home / "runs" / "<img src=x onerror=alert(1)>"
    hostile.mkdir(parents=True)
    (hostile / "config.json").write_text("{}")
    assert all_runs(home) == []
    with pytest.raises(ConfigError, match="group"):
        small_config(group="../x")


def test_a_preset_of_the_screen_is_a_name(home, outside):
    for name in (str(outside / "test.jsonl"), "../../etc/passwd", "pocket.toml"):
        with pytest.raises(ValueError, match="no preset"):
            screen.preset_config(name)


@pytest.mark.parametrize("name", ["new_run", "merge", "layers"])
def test_the_pages_refuse_paths_that_lead_out(name, home, outside):
    page = AppTest.from_file(str(ROOT / "pages" / f"{name}.py"), default_timeout=60).run()
    if name != "new_run":
        page.sidebar.toggle[0].set_value(True).run()
    fields = {"Base model": str(outside), "Base": str(outside), "sft": "data/pocket/model", "Model": str(outside)}
    for field in page.text_input:
        if field.label in fields:
            field.set_value(fields[field.label])
    for button in page.button:
        if button.label == "Analyse":
            button.click()
    page.run()
    assert not page.exception and any("leads out" in error.value for error in page.error)
    assert not (home / "labs").exists() and not (home / "analyses").exists()
