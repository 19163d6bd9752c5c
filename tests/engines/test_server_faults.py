"""What goes wrong with a teacher's server: it costs no answer that was paid for, and never shows the key."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.conftest import ROOT, small_config
from workbench.config import SampleConfig, TeacherConfig
from workbench.core.prompts import messages
from workbench.engines import NO_ANSWER, Request, Unfinished, open_server
from workbench.jobs import Checkpoint, SampleJob, TaskSource
from workbench.phases import sample
from workbench.rundir import PhaseDir
from workbench.settings import ConfigError
from workbench.solutions import sent
from workbench.tasks import load_questions

KEY = "sk-a-key-that-must-appear-nowhere"
TASK = TaskSource(task="pocket_steps")


class Server(ThreadingHTTPServer):
    """Answers whatever `behave(prompt, number)` says: a text, (status, message), or the bytes of a whole body."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.behave = lambda prompt, number: " 5"
        self.asked, self.answered, self.lock = [], 0, threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.asked.append(body)
            number = len(self.server.asked)
        said = self.server.behave(body.get("prompt") or body["messages"][-1]["content"], number)
        status, kind = 200, "application/json"
        if isinstance(said, bytes):
            data, kind = said, "text/html" if said.startswith(b"<") else kind
        elif isinstance(said, tuple):
            status, data = said[0], json.dumps({"error": {"message": f"{said[1]} {self.headers['Authorization']}"}})
        else:
            choice = {"index": 0, "text": said, "message": {"role": "assistant", "content": said}}
            data = json.dumps({"choices": [choice | {"finish_reason": "stop"}], "usage": {"completion_tokens": 1}})
            with self.server.lock:
                self.server.answered += 1
        data = data if isinstance(data, bytes) else data.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    made = Server()
    thread = threading.Thread(target=made.serve_forever, args=(0.05,))
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


def teacher(server, **settings):
    settings = {"format": "plain", "concurrency": 2, "retries": 0, "timeout_s": 20} | settings
    return TeacherConfig(model="m", url=server.url, **settings)


def ask(server, chat=False):
    words = [f"question {number}" for number in range(8)]
    asked = [Request(text, turns=tuple(messages(text)) if chat else None) for text in words]
    return open_server(teacher(server)).generate(asked, max_new_tokens=5)


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("fault", [(400, "too long"), b'{"choices": []}', b'{"error": "overloaded"}'])
def test_a_request_that_is_refused_gets_no_answer_and_the_others_get_theirs(server, fault, chat):
    server.behave = lambda prompt, number: fault if "3" in prompt else " 5"
    made = ask(server, chat)
    assert made[3] == NO_ANSWER and [answer.text for answer in made].count("5") == 7
    server.behave = lambda prompt, number: fault if "question" in prompt else " 5"
    assert ask(server, chat) == [NO_ANSWER] * 8
    server.behave = lambda prompt, number: fault
    with pytest.raises(ValueError, match=r"^http://127.0.0.1:.* (too long|answers without a text)"):
        ask(server, chat)


def test_a_choice_without_words_is_an_empty_answer(server):
    server.behave = lambda prompt, number: None
    assert [(answer.text, answer.num_tokens) for answer in ask(server) + ask(server, chat=True)] == [("", 1)] * 16


@pytest.mark.parametrize("body", [b"<html>gateway</html>", b'{"choices": ['])
def test_what_is_no_json_is_one_sentence(server, body):
    server.behave = lambda prompt, number: body
    with pytest.raises(Unfinished, match=r"^http.* something else than JSON; set teacher.url to the API's address"):
        ask(server)


@pytest.mark.parametrize("status", [400, 401, 403, 404])
def test_a_key_that_a_server_sends_back_is_not_shown(server, status):
    server.behave = lambda prompt, number: (status, "not allowed" * 30)
    with pytest.raises(ValueError) as caught:
        ask(server)
    assert KEY not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("end", ["?api-key=abc", "#abc"])
def test_a_key_in_the_address_is_refused_and_not_repeated(end):
    with pytest.raises(ConfigError, match=r"teacher.url (must end before|holds an address).*OPENAI_API_KEY") as caught:
        small_config(**{"teacher.model": "m", "teacher.url": f"https://host/v1{end}"})
    assert "abc" not in str(caught.value)


def sample_job(server, **changes):
    settings = {"temperatures": (0.2, 0.6), "num_samples": 6, "few_shot": 0, "max_new_tokens": 5}
    pocket = Checkpoint(checkpoint_id="b", kind="base", path=str(ROOT / "data/pocket/model"))
    job = SampleJob(
        model=pocket,
        train_task=TASK,
        num_questions=5,
        iteration=1,
        seed=0,
        sample=SampleConfig(**settings),
        teacher=teacher(server, concurrency=1),
        engine=small_config().engine,
        threads=1,
    )
    return job.model_copy(update=changes)


def run(job, place):
    return sample.run(job, place, lambda *_, **__: None)


def solved(prompt):
    """The right answer to a prompt of the task."""
    return next(f"The answer is {q.reference}." for q in load_questions(TASK, "train").questions if q.text in prompt)


def test_what_was_answered_before_a_failure_is_kept_and_not_asked_for_again(server, tmp_path):
    """Batches of 4 split the 12 samples of a question; of the equal solutions to it one is kept."""
    place = PhaseDir(tmp_path, 1, "sample")
    server.behave = lambda prompt, number: solved(prompt) if number <= 18 else (403, "no credit left")
    with pytest.raises(Unfinished, match="no credit left"):
        run(sample_job(server), place)
    paid = place.solutions.read_text().splitlines()
    assert len(paid) == server.answered == 18
    server.behave = lambda prompt, number: solved(prompt)
    summary = run(sample_job(server), place)
    assert place.solutions.read_text().splitlines()[:18] == paid
    assert (server.answered, summary["num_solutions"], summary["num_correct"], summary["num_kept"]) == (60, 60, 60, 5)


def test_the_system_message_reaches_a_teacher_that_is_asked_in_chats(server, tmp_path):
    place = PhaseDir(tmp_path, 1, "sample")
    prompt = small_config(**{"prompt.format": "chat", "prompt.system": "Be brief."}).prompt
    job = sample_job(server, teacher=teacher(server, format="chat"), prompt=prompt, num_questions=1)
    server.behave = lambda prompt, number: solved(prompt)
    run(job, place)
    assert all(body["messages"][0] == {"role": "system", "content": "Be brief."} for body in server.asked)
    place.job.write_text(job.model_dump_json())
    question = json.loads(place.solutions.read_text().splitlines()[0])["question"]
    assert sent(place, question) == f"system: Be brief.\n\nuser: {question}"


def test_no_batch_is_larger_than_the_engine_takes(server):
    """Whole questions share a batch where one fits, and else a question is split."""
    questions = load_questions(TASK, "train").questions[:7]
    for size, wanted in ((30, {24, 12}), (12, {12}), (5, {5, 4})):
        engine = small_config(**{"engine.batch_size": size}).engine
        sampler = sample._Sampler(sample_job(server, teacher=TeacherConfig(), engine=engine), [], "number")
        batches = sampler.batches(questions)
        assert {len(batch) for batch in batches} == wanted
        assert len({(q.question_id, i) for batch in batches for q, i, _ in batch}) == 7 * 12
