"""A person with a browser: starts the pocket run, watches a chart fill, stops the run, resumes it."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from tests.conftest import ROOT, wait_until
from workbench import launch
from workbench.rundir import all_runs

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")]


@pytest.fixture
def app(home):
    """The app on a free port, and nothing left of it afterwards."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with (home / "app.log").open("wb") as log:
        command = [sys.executable, "-m", "streamlit", "run", "workbench/app.py", "--server.port", str(port)]
        server = subprocess.Popen(command, cwd=ROOT, env=os.environ, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: answers(f"{address}/_stcore/health"), 60)
        yield address
    finally:
        server.terminate()
        server.wait()
        for run in all_runs(home):
            if launch.observed_status(run)[0] in ("queued", "running"):
                launch.stop(home, run.run_id)


def answers(address: str) -> bool:
    try:
        return urllib.request.urlopen(address, timeout=1).status == 200
    except OSError:
        return False


def test_start_watch_stop_resume(app, home):
    from playwright.sync_api import expect, sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1300, "height": 1000})
        outside = []
        page.on("request", lambda request: outside.append(request.url) if app not in request.url else None)
        page.goto(app)
        page.get_by_role("button", name="Start the pocket run").click()
        expect(page.get_by_text("● running")).to_be_visible(timeout=60_000)

        points = page.locator(".scatterlayer .trace .points path")
        expect(points.first).to_be_visible(timeout=180_000)
        early = points.count()
        wait_until(lambda: points.count() > early or page.get_by_text("sample:").count() > 0, 180)

        page.get_by_role("button", name="Stop", exact=True).click()
        page.get_by_role("button", name="Stop the run").click()
        expect(page.get_by_text("■ stopped")).to_be_visible(timeout=20_000)
        run = all_runs(home)[0]
        assert launch.observed_status(run)[0] == "stopped" and not launch.is_alive(run)

        page.get_by_role("button", name="Resume").click()
        expect(page.get_by_text("● running")).to_be_visible(timeout=60_000)
        expect(points.first).to_be_visible()

        page.close()
        browser.close()
        time.sleep(3)
        assert launch.observed_status(run)[0] == "running", "the run must go on without a browser"
        assert [url for url in outside if not url.startswith(("data:", "blob:"))] == []
