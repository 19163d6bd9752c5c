"""What a browser makes of hostile texts, and the login, in real Chromium."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import parse_qs, urlparse

import pytest
from playwright.sync_api import expect, sync_playwright

from tests.conftest import ROOT, wait_until
from tests.test_browser import CHROMIUM, FLAGS, answers
from workbench import store
from workbench.rundir import find_run

pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")]
PASSWORD = "correct horse battery"
HOSTILE = (
    "The answer is 7. <script>window.pwned = 1</script><img src=x onerror='window.pwned = 1'>"
    "<svg onload='window.pwned = 1'></svg><iframe srcdoc='<script>parent.pwned = 1</script>'></iframe>"
    "[click](javascript:window.pwned=1) ![x](http://evil.invalid/x.png) <b>bold</b> {{7*7}} $x$"
)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def serving(home, *options, port=None, **environment):
    """The app on a free port."""
    port = port or free_port()
    command = [sys.executable, "-m", "streamlit", "run", "workbench/app.py", "--server.port", str(port), *options]
    with (home / "app.log").open("wb") as log:
        server = subprocess.Popen(command, cwd=ROOT, env=os.environ | environment, stdout=log, stderr=log)
    try:
        wait_until(lambda: answers(f"http://127.0.0.1:{port}/_stcore/health"), 60)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


@pytest.fixture(scope="module")
def browser():
    """A real browser."""
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture
def page(browser):
    """A page, and the addresses that it asked for."""
    opened = browser.new_page(viewport={"width": 1300, "height": 1400})
    opened.asked_for = []
    opened.on("request", lambda request: opened.asked_for.append(request.url))
    yield opened
    opened.close()


@pytest.fixture
def hostile_run(finished_run, home):
    """A copy of the finished run in which every text is hostile, and a store of it."""
    shutil.copytree(finished_run.path, home / "runs" / finished_run.run_id)
    run = find_run(home, finished_run.run_id)
    for file in [*run.path.rglob("solutions.jsonl"), *run.path.rglob("outcomes.jsonl")]:
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        texts = {"question": HOSTILE, "text": HOSTILE, "answer": "<img src=x onerror='window.pwned = 1'>",
                 "reference": HOSTILE}  # fmt: skip
        file.write_text("".join(json.dumps(row | texts) + "\n" for row in rows))
    for file in run.path.rglob("events.jsonl"):
        with file.open("a") as lines:
            for name in ("note", "alert"):
                lines.write(
                    json.dumps({"ts": time.time(), "name": name, "value": None, "step": 0, "text": HOSTILE}) + "\n"
                )
    run.log.write_text(HOSTILE)
    store.rebuild(home)
    return run


def test_html_in_texts_is_shown_and_not_executed(hostile_run, home, page):
    with serving(home) as address:
        for name in ("live", "solutions", "sql", "", "accuracy"):
            page.goto(f"{address}/{name}")
            expect(page.get_by_role("link", name="SQL")).to_be_visible(timeout=30_000)
            if name == "solutions":
                table = page.locator("[data-testid=stDataFrame]").first
                expect(table).to_be_visible(timeout=30_000)
                table.click(position={"x": 15, "y": 55})  # its first row
                expect(page.locator("mark", has_text="onerror")).to_be_visible(timeout=30_000)
                assert "<script>window.pwned = 1</script>" in page.inner_text("body")
            elif name == "sql":
                query = page.get_by_role("textbox", name="Query")
                query.fill("SELECT text AS \"<img src=x onerror='window.pwned = 1'>\", 1 AS n FROM solutions")
                query.press("Control+Enter")
                expect(page.get_by_text("rows in")).to_be_visible(timeout=30_000)
                page.get_by_role("tab", name="Chart").click()
                expect(page.locator(".workbench-chart .main-svg").first).to_be_visible(timeout=30_000)
            page.wait_for_timeout(2000)
            assert page.evaluate("window.pwned") is None, name
            assert page.locator("img[onerror], svg[onload], iframe[srcdoc]").count() == 0, name
            assert page.locator("a[href^='javascript:']").count() == 0, name
    assert [url for url in page.asked_for if "evil.invalid" in url] == []


def test_nobody_is_served_where_others_can_reach_the_app_without_a_login(home, page):
    with serving(home, "--server.address", "0.0.0.0") as address:
        for name in ("", "sql", "live"):
            page.goto(f"{address}/{name}")
            expect(page.get_by_text("listens on 0.0.0.0, which others can reach, and no login")).to_be_visible()
            assert page.get_by_role("button").count() == 0 and page.get_by_role("link", name="SQL").count() == 0


def test_protection_against_forged_requests_may_not_be_off_there(home, page):
    options = ("--server.address", "0.0.0.0")
    with serving(home, *options, WORKBENCH_PASSWORD=PASSWORD, STREAMLIT_SERVER_ENABLE_XSRF_PROTECTION="false") as app:
        page.goto(app)
        expect(page.get_by_text("its protection against forged requests is off")).to_be_visible(timeout=30_000)
        assert page.locator("input").count() == 0


def test_a_password_opens_the_page_that_was_asked_for(home, page):
    with serving(home, "--server.address", "0.0.0.0", WORKBENCH_PASSWORD=PASSWORD) as address:
        page.goto(f"{address}/sql")
        box = page.locator("input[type=password]")
        box.fill("wrong horse battery")
        began = time.monotonic()
        box.press("Enter")
        expect(page.get_by_text("That is not the password")).to_be_visible(timeout=30_000)
        assert time.monotonic() - began > 1 and page.get_by_text("Slowest phases").count() == 0
        box.fill(PASSWORD)
        box.press("Enter")
        expect(page.get_by_text("Slowest phases")).to_be_visible(timeout=30_000)
        assert page.url.endswith("/sql")
        page.get_by_role("button", name="Sign out").click()
        expect(page.locator("input[type=password]")).to_be_visible(timeout=30_000)
        expect(page.get_by_text("Slowest phases")).to_have_count(0, timeout=10_000)
        assert PASSWORD not in (home / "app.log").read_text()


KNOCK = """address => new Promise(done => {
    const socket = new WebSocket(address);
    socket.onopen = () => done("open");
    socket.onerror = () => done("refused");
})"""


def test_a_page_of_another_site_cannot_talk_to_the_app(home, page):
    with serving(home) as address:
        stream = f"{address.replace('http', 'ws')}/_stcore/stream"
        page.goto(address)
        assert page.evaluate(KNOCK, stream) == "open"
        page.goto("data:text/html,another site")
        assert page.evaluate(KNOCK, stream) == "refused"


class Provider(BaseHTTPRequestHandler):
    """The least OpenID Connect provider: whoever comes is the person it is told (`email`)."""

    email = "ann@example.org"
    key = None
    nonces: dict = {}

    def do_GET(self):
        url, at = urlparse(self.path), f"http://127.0.0.1:{self.server.server_port}"
        if url.path == "/authorize":
            asked = {name: values[0] for name, values in parse_qs(url.query).items()}
            self.nonces["code"] = asked.get("nonce")
            self.send_response(302)
            self.send_header("Location", f"{asked['redirect_uri']}?code=code&state={asked['state']}")
            self.end_headers()
        elif url.path == "/keys":
            self.answer({"keys": [self.key.as_dict(private=False, kid="k", use="sig", alg="RS256")]})
        else:
            self.answer(
                {"issuer": at, "authorization_endpoint": f"{at}/authorize", "token_endpoint": f"{at}/token",
                 "jwks_uri": f"{at}/keys", "response_types_supported": ["code"], "subject_types_supported": ["public"],
                 "id_token_signing_alg_values_supported": ["RS256"]}
            )  # fmt: skip

    def do_POST(self):
        from joserfc import jwt

        now, at = int(time.time()), f"http://127.0.0.1:{self.server.server_port}"
        claims = {"iss": at, "aud": "id", "sub": "1", "email": self.email, "iat": now, "exp": now + 600,
                  "nonce": self.nonces["code"]}  # fmt: skip
        token = jwt.encode({"alg": "RS256", "kid": "k"}, claims, self.key)
        self.answer({"access_token": "a", "token_type": "Bearer", "expires_in": 600, "id_token": token})

    def answer(self, value):
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(value).encode())

    def log_message(self, *words):
        pass


@pytest.fixture
def provider():
    """A provider of this machine's own, and its address."""
    pytest.importorskip("authlib", reason="the extra `login` is not installed")
    from joserfc.jwk import RSAKey

    Provider.key = RSAKey.generate_key(2048)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Provider)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_streamlits_own_login_lets_in_whom_it_should(provider, home, page, monkeypatch):
    port = free_port()
    secrets = home / "secrets.toml"
    secrets.write_text(
        f"""[auth]
redirect_uri = "http://127.0.0.1:{port}/oauth2callback"
cookie_secret = "{"c" * 40}"
client_id = "id"
client_secret = "s"
server_metadata_url = "{provider}/.well-known/openid-configuration"
"""
    )
    options = ("--server.address", "0.0.0.0", "--secrets.files", str(secrets))
    with serving(home, *options, port=port, WORKBENCH_USERS="@example.org") as address:
        page.goto(f"{address}/sql")
        sign_in = page.get_by_role("button", name="Sign in")
        expect(sign_in).to_be_visible(timeout=30_000)
        assert page.get_by_text("Slowest phases").count() == 0
        sign_in.click()
        expect(page.get_by_role("link", name="SQL")).to_be_visible(timeout=30_000)
        page.goto(f"{address}/sql")  # the cookie stays
        expect(page.get_by_text("Slowest phases")).to_be_visible(timeout=30_000)
        page.get_by_role("button", name="Sign out").click()
        expect(sign_in).to_be_visible(timeout=30_000)
        monkeypatch.setattr(Provider, "email", "eve@evil.example")
        sign_in.click()
        expect(page.get_by_text("eve@evil.example may not enter")).to_be_visible(timeout=30_000)
        assert page.get_by_role("link", name="SQL").count() == 0
