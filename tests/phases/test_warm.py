"""The warm process lets go of its memory before training starts."""

import subprocess
import sys
import time

import pytest

from tests.conftest import small_config
from workbench import runner
from workbench.rundir import RunDir, write_json


@pytest.fixture
def run(tmp_path):
    write_json(RunDir(tmp_path).config, {"config": small_config().model_dump(mode="json")})
    made = runner.Runner(RunDir(tmp_path))
    yield made
    runner.end(made.warm)
    made.warm.stdin.close()


def started(*command):
    return subprocess.Popen([sys.executable, *command], stdin=subprocess.PIPE)


def test_the_runner_waits_until_the_warm_process_has_let_go(run):
    run.warm = started("-m", "workbench.phases.warm", str(run.run.path))
    run.rest_warm()
    assert not (run.run.path / ".rest").exists() and run.warm.poll() is None


def test_the_runner_waits_for_no_dead_and_no_deaf_process(run, monkeypatch):
    monkeypatch.setattr(runner, "REST_S", 1)
    run.warm = started("-c", "import time; time.sleep(60)")
    since = time.monotonic()
    run.rest_warm()
    assert 1 < time.monotonic() - since < 10
    runner.end(run.warm)
    run.warm.stdin.close()
    run.warm = started("-c", "")
    monkeypatch.setattr(runner, "REST_S", 60)
    run.rest_warm()
    assert time.monotonic() - since < 20
