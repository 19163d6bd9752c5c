"""Models of strangers: code that they bring along is not run, and pickles are not opened."""

import json
import os
import pickle
import shutil

import pytest
from streamlit.testing.v1 import AppTest

from tests.conftest import ROOT, small_config
from workbench import checkpoints, checks, comparisons, screen
from workbench.plan import plan
from workbench.rundir import RunDir

POCKET = ROOT / "data" / "pocket" / "model"
CODE = """
from pathlib import Path
from transformers import Qwen2Config, Qwen2ForCausalLM
Path({marker!r}).write_text("ran")
class StrangeConfig(Qwen2Config):
    model_type = "strange"
class StrangeModel(Qwen2ForCausalLM):
    config_class = StrangeConfig
"""


@pytest.fixture
def strange(tmp_path):
    """A model that brings code along, which leaves a mark when it is run; and that mark."""
    model, marker = tmp_path / "strange", tmp_path / "ran"
    shutil.copytree(POCKET, model)
    config = json.loads((model / "config.json").read_text())
    auto_map = {"AutoConfig": "strange.StrangeConfig", "AutoModelForCausalLM": "strange.StrangeModel"}
    config |= {"model_type": "strange", "architectures": ["StrangeModel"], "auto_map": auto_map}
    (model / "config.json").write_text(json.dumps(config))
    (model / "strange.py").write_text(CODE.format(marker=str(marker)))
    return model, marker


def test_a_model_with_code_of_its_own_is_refused_before_the_start(strange, home, monkeypatch):
    model, marker = strange
    for config in (small_config(model=str(model)), small_config(**{"teacher.model": str(model)})):
        found = [p for p in checks.check(config, home) if "brings Python code along" in p]
        assert len(found) == 1 and "trust_remote_code to true" in found[0] and "keys and network" in found[0]
    with pytest.raises(ValueError, match="brings Python code along"):
        comparisons.analysis_job(str(model), None, None, None, small_config().analyze)
    assert not marker.exists()
    trusted = small_config(model=str(model), trust_remote_code=True)
    assert not [problem for problem in checks.check(trusted, home) if "code" in problem]


def loaders(model, trust):
    """Everything that loads a model or tokenizer."""
    from workbench.analysis.importance import open_model
    from workbench.engines import WarmEngine
    from workbench.jobs import Checkpoint, SftJob
    from workbench.phases.sft import folded
    from workbench.phases.trainer import load

    config = small_config()
    job = SftJob(
        start=Checkpoint(checkpoint_id="x", kind="base", path=str(model)), trust_remote_code=trust, solutions=(),
        iteration=1, seed=0, sft=config.sft, threads=1,
    )  # fmt: skip
    engine = config.engine.model_copy(update={"kind": "transformers"})
    yield lambda: WarmEngine().holding(model, engine, 1, trust)
    yield lambda: load(job)
    yield lambda: open_model(model, "auto", trust_remote_code=trust)
    yield lambda: folded(model, model / "adapter", trust)


def test_no_loader_runs_a_models_code_unless_it_is_trusted(strange, monkeypatch, tmp_path):
    model, marker = strange
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    for load in loaders(model, False):
        with pytest.raises(ValueError, match="trust_remote_code"):
            load()
    assert not marker.exists()
    for load in list(loaders(model, True))[:3]:
        assert load() is not None
    assert marker.exists()


def test_the_plan_hands_the_trust_to_every_phase_that_loads(home):
    config = small_config(trust_remote_code=True)
    for place, job in plan(RunDir(home / "runs" / "r"), config, "base", 1):
        assert place.phase == "merge" or job.trust_remote_code
    assert not any(job.trust_remote_code for _, job in plan(RunDir(home / "r"), small_config(), "b", 1)
                   if hasattr(job, "trust_remote_code"))  # fmt: skip


def test_new_run_asks_for_trust_and_says_what_it_means(home):
    page = AppTest.from_file(str(ROOT / "pages" / "new_run.py"), default_timeout=60).run()
    toggle = next(toggle for toggle in page.toggle if toggle.label == screen.TRUST_LABEL)
    assert not toggle.value and "read and change files, use keys and the network" in toggle.help
    toggle.set_value(True).run()
    assert not page.exception and any("files, keys and network" in warning.value for warning in page.warning)
    assert "--set trust_remote_code=true" in page.code[0].value


class Bomb:
    """Runs a command when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth", "last.ckpt", "weights.pkl"])
def test_a_pickle_is_refused_in_one_sentence_and_not_opened(name, tmp_path, home):
    model, marker = tmp_path / "model", tmp_path / "ran"
    model.mkdir()
    shutil.copy(POCKET / "config.json", model)
    (model / name).write_bytes(pickle.dumps(Bomb(marker)))
    problems = checks.check(small_config(model=str(model)), home)
    assert "pickle files only" in problems[0] and "convert it to safetensors" in problems[0]
    for load in loaders(model, False):
        with pytest.raises((ValueError, OSError)):
            load()
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(POCKET)}))
    (adapter / "adapter_model.bin").write_bytes(pickle.dumps(Bomb(marker)))
    with pytest.raises(ValueError, match="pickle"):
        next(loaders(adapter, False))()
    assert not marker.exists()


def test_an_index_whose_shards_lie_elsewhere_is_refused(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    shutil.copy(POCKET / "config.json", model)
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": "../other.safetensors"}}))
    shutil.copy(POCKET / "model.safetensors", tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="not beside it"):
        checkpoints.describe(model)
