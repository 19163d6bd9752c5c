"""A person with a browser: sets up a small pocket run, sees its first accuracy, stops the run, resumes it."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from playwright.sync_api import expect, sync_playwright

from tests.conftest import ROOT, wait_until
from workbench import launch, merge_charts, store
from workbench.core.distances import from_base
from workbench.labdir import all_labs
from workbench.processes import end_group
from workbench.rundir import all_runs, read_json

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
        for lab in all_labs(home):
            end_group(lab, 5)
        for run in all_runs(home):
            if launch.observed_status(run)[0] in ("queued", "running"):
                launch.stop(home, run.run_id)


def answers(address: str) -> bool:
    try:
        return urllib.request.urlopen(address, timeout=1).status == 200
    except OSError:
        return False


@pytest.fixture
def page():
    """A page of a real browser."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser.new_page(viewport={"width": 1300, "height": 1400})
        browser.close()


def test_start_watch_stop_resume(app, home, page):
    outside = []
    page.on("request", lambda request: outside.append(request.url) if app not in request.url else None)
    page.goto(f"{app}/new")
    for label, name, value in (
        ("Train questions", "num_questions", 120),
        ("Test questions per task", "eval_questions", 20),
    ):
        page.get_by_label(label, exact=True).fill(str(value))
        page.get_by_label(label, exact=True).press("Enter")
        expect(page.get_by_text(f"{name}={value}")).to_be_visible(timeout=60_000)  # in the command
    page.get_by_role("button", name="Start the run").click()
    expect(page.get_by_text("● running")).to_be_visible(timeout=60_000)

    points = page.locator(".scatterlayer .trace .points path")
    expect(points.first).to_be_visible(timeout=600_000)

    page.get_by_role("button", name="Stop", exact=True).click()
    page.get_by_role("button", name="Stop the run").click()
    expect(page.get_by_text("■ stopped")).to_be_visible(timeout=20_000)
    run = all_runs(home)[0]
    assert read_json(run.config)["config"]["num_questions"] == 120
    wait_until(lambda: not launch.is_alive(run), 20)
    assert launch.observed_status(run)[0] == "stopped"

    page.get_by_role("button", name="Resume").click()
    expect(page.get_by_text("● running")).to_be_visible(timeout=60_000)
    expect(points.first).to_be_visible()

    page.close()
    time.sleep(3)
    assert launch.observed_status(run)[0] == "running", "the run must go on without a browser"
    assert [url for url in outside if not url.startswith(("data:", "blob:"))] == []


ZOOM = "() => document.querySelectorAll('.workbench-chart')[1].layout.xaxis.range"


@pytest.fixture
def with_run(finished_run, home):
    """A home with a copy of the finished run."""
    shutil.copytree(finished_run.path, home / "runs" / finished_run.run_id)
    store.rebuild(home)


def drag(page, chart, start, end):
    """Drag over a box, by fractions of its width, at its middle."""
    box = chart.bounding_box()
    height = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] * start, height)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * end, height, steps=6)


def test_a_zoom_outlasts_new_data(with_run, app, home, page):
    page.goto(f"{app}/live")
    chart = page.locator(".workbench-chart").nth(1)
    expect(chart.locator(".points path").first).to_be_visible(timeout=30_000)
    drag(page, chart, 0.1, 0.3)
    page.mouse.up()
    zoomed = page.evaluate(ZOOM)
    count = chart.locator(".points path").count()
    outcomes = [path for path in all_runs(home)[0].path.rglob("events.jsonl") if path.parent.name == "evaluate"]
    score = next(line for line in outcomes[0].read_text().splitlines() if '"score"' in line and "pocket_words" in line)
    with outcomes[0].open("a") as file:
        file.write(score.replace("pocket_words", "pocket_new") + "\n")
    store.rebuild(home)
    wait_until(lambda: chart.locator(".legendtext").filter(has_text="pocket_new").count() == 1, 60)
    assert page.evaluate(ZOOM) == zoomed and chart.locator(".points path").count() >= count - 1


COLLISIONS = """() => {
  const boxes = (plot, what) => [...plot.querySelectorAll(what)].map((e) => [e.textContent, e.getBoundingClientRect()]);
  const meet = (a, b) => a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 1 && b.top < a.bottom - 1;
  return [...document.querySelectorAll(".js-plotly-plot")].flatMap((plot) =>
    boxes(plot, ".legend .traces .legendtext").flatMap(([entry, a]) =>
      boxes(plot, ".annotation, .xtitle, .ytitle, .xtick").filter(([, b]) => meet(a, b)).map(([t]) => [entry, t])));
}"""
"""What of a chart lies under its legend."""
CURVES = "() => document.querySelector('.merge-lab .workbench-chart').data.map((trace) => Array.from(trace.y))"


def test_sliders_follow_the_drag_and_merges_are_compared(with_run, app, home, page):
    page.goto(f"{app}/merge")
    totals = page.locator(".merge-lab .totals")
    expect(totals).to_contain_text("from the base", timeout=60_000)
    slider = page.get_by_role("slider", name="alpha")
    page.context.set_offline(True)
    before = totals.inner_text()
    drag(page, slider, 0.5, 0.8)
    wait_until(lambda: totals.inner_text() != before, 5)
    alpha = float(slider.input_value())
    moments = read_json(all_labs(home)[0].moments)["moments"]
    mean, _ = from_base(moments, alpha, 0.2, "base")
    shown = float(totals.inner_text().split(" from the base")[0].split()[-1])
    assert shown == pytest.approx((mean**2).sum() ** 0.5, rel=1e-3) and alpha > 0.6
    pair = read_json(all_labs(home)[0].moments) | {"importance": None}
    merge = {"alpha": alpha, "drop_rate": 0.2, "profile": "uniform", "points": [], "towards": "base"}
    for drawn, ours in zip(page.evaluate(CURVES), merge_charts.distances(pair, merge).data, strict=True):
        assert drawn == pytest.approx(list(ours.y)), "the notebook's curves are the browser's"
    page.context.set_offline(False)
    page.mouse.up()

    page.get_by_label("Questions per task").first.fill("20")
    page.get_by_label("Questions per task").first.press("Enter")
    page.get_by_role("button", name="Evaluate this merge").click()
    marks = page.locator(".workbench-chart").nth(1).locator(".scatterlayer .points path")
    wait_until(lambda: marks.count() == 2 * 3, 120)
    slider.press("ArrowRight")
    page.get_by_role("button", name="Evaluate this merge").click()
    wait_until(lambda: marks.count() == 2 * 4, 120)
    page.get_by_label("Pinned merges").click()
    page.keyboard.type("alpha 0.")
    page.keyboard.press("Enter")
    expect(page.get_by_text("p: exact McNemar")).to_be_visible(timeout=30_000)
    differences = page.locator(".workbench-chart").last
    wait_until(lambda: differences.locator(".scatterlayer .points path").count() == 2 * 2 * 2, 30)
    assert page.evaluate(COLLISIONS) == []


def test_a_chart_is_opened_as_a_notebook(with_run, app, home, page):
    page.goto(f"{app}/live")
    page.get_by_role("button", name="open in notebook").first.click()
    expect(page.locator(".workbench-notebook span").first).to_contain_text("timeline-", timeout=30_000)
    (written,) = (home / "notebooks").iterdir()
    assert written.name in page.locator(".workbench-notebook span").first.inner_text()
