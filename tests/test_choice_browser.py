"""The chosen run in a real browser: on every page and in every address; tables whose rows go; charts that stay here."""

import json
import shutil

import duckdb
import pytest
from playwright.sync_api import expect, sync_playwright

from tests.test_browser import CHROMIUM, COLLISIONS, FLAGS
from tests.test_security_browser import serving
from workbench import charts, store
from workbench.rundir import store_path

pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")]
OF_A_RUN = {"Live run": "live", "Accuracy": "accuracy", "Solutions": "solutions", "Merge": "merge", "Layers": "layers"}
PAGES = {"Runs": "", "New run": "new", "Queue": "queue", "SQL": "sql"} | OF_A_RUN
FOREIGN = """() => {
  const known = /^http:\\/\\/www\\.w3\\.org\\//;  // names of XML dialects, which nobody asks for
  const values = [...document.querySelectorAll("*")].flatMap((e) => [...e.attributes].map((a) => a.value));
  return values.filter((v) => /^(\\w+:)?\\/\\//.test(v) && !v.startsWith(location.origin) && !known.test(v));
}"""
TITLES = "() => [...document.querySelectorAll('.modebar-btn')].map((button) => button.dataset.title)"
CONFIGS = """() => [...document.querySelectorAll(".js-plotly-plot")].map(({ _context: c }) =>
  [c.showSendToCloud, c.plotlyServerURL, c.topojsonURL, c.displaylogo])"""


@pytest.fixture(scope="module")
def app(finished_run, tmp_path_factory):
    """The app on a home with an older and a newer run."""
    home = tmp_path_factory.mktemp("home")
    for name in (finished_run.run_id, f"{finished_run.run_id}-newer"):
        shutil.copytree(finished_run.path, home / "runs" / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_HOME", str(home))
        store.rebuild(home)
        with serving(home) as address:
            yield address, home, finished_run.run_id


@pytest.fixture
def page():
    """A page of a real browser."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser.new_page(viewport={"width": 1300, "height": 1400})
        browser.close()


def go(page, name):
    """Click in the menu, and wait until that page stands there."""
    page.locator("[data-testid=stSidebar]").get_by_role("link", name=name, exact=True).click()
    page.wait_for_url(lambda url: url.split("?")[0].rsplit("/", 1)[-1] == PAGES[name])


def shows(page, name, run_id):
    """A page's box of runs has this one."""
    if name == "Accuracy":
        expect(page.locator("[data-testid=stMultiSelect]")).to_contain_text(run_id, timeout=30_000)
    else:
        expect(page.get_by_label("Run", exact=True)).to_have_value(run_id, timeout=30_000)


def test_the_chosen_run_is_on_every_page_and_back_takes_one_click(app, page):
    address, _, older = app
    page.goto(f"{address}/live?run={older}")
    expect(page.get_by_role("heading", name=older, exact=True)).to_be_visible(timeout=60_000)
    entries = page.evaluate("history.length")
    ways = ["Accuracy", "Solutions", "New run", "Layers", "SQL", "Queue", "Runs", "Live run"]
    for name in ways:
        go(page, name)
        page.wait_for_url(f"**run={older}")
        if name in OF_A_RUN:
            shows(page, name, older)
    assert page.evaluate("history.length") == entries + len(ways)
    for name in [*ways[-2::-1], "Live run"]:  # as fast as a page is drawn: Streamlit trips over Backs within 0.1 s
        page.go_back()
        page.wait_for_url(f"{address}/{PAGES[name]}?run={older}")
        title = older if name == "Live run" else name
        expect(page.get_by_role("heading", name=title, exact=True)).to_be_visible(timeout=30_000)


def test_a_page_opened_without_a_run_names_what_it_shows_and_another_can_be_chosen(app, page):
    address, _, older = app
    page.goto(f"{address}/live")
    page.wait_for_url(f"{address}/live?run={older}-newer", timeout=60_000)
    entries = page.evaluate("history.length")
    page.get_by_label("Run", exact=True).click()
    page.get_by_role("option", name=older, exact=True).click()
    expect(page.get_by_role("heading", name=older, exact=True)).to_be_visible(timeout=30_000)
    page.wait_for_url(f"{address}/live?run={older}")
    page.reload()
    expect(page.get_by_role("heading", name=older, exact=True)).to_be_visible(timeout=60_000)
    go(page, "Runs")
    table = page.locator("[data-testid=stDataFrame] canvas").first
    expect(table).to_be_visible(timeout=30_000)
    table.click(position={"x": 20, "y": 35 + 17}, force=True)  # the box of the first row: the newest run
    expect(page.get_by_role("heading", name=f"{older}-newer", exact=True)).to_be_visible(timeout=30_000)
    assert page.evaluate("history.length") == entries + 2


def test_several_chosen_runs_are_named_too(app, page):
    address, _, older = app
    page.goto(f"{address}/accuracy?runs={older},{older}-newer")
    expect(page.get_by_text("imm · seed 0").first).to_be_visible(timeout=60_000)
    go(page, "Layers")
    shows(page, "Layers", older)
    go(page, "Accuracy")
    shows(page, "Accuracy", f"{older}-newer")
    assert older in page.url and f"{older}-newer" in page.url


def test_an_unknown_run_is_said_and_no_other_shown(app, page):
    address, home, older = app
    labs = [*(home / "labs").glob("*")]
    for name in OF_A_RUN.values():
        page.goto(f"{address}/{name}?run={older[:-1]}x")
        said = page.get_by_text(f"There is no run {older[:-1]}x here. Nearest by name: {older}")
        expect(said).to_be_visible(timeout=60_000)
        assert page.locator(".js-plotly-plot").count() == 0
        assert page.url.endswith(f"?run={older[:-1]}x")
    assert [*(home / "labs").glob("*")] == labs, "Merge opened a lab of a run that nobody chose"


def test_a_selection_ends_with_the_rows_it_was_in(app, page):
    address, _, older = app
    page.goto(f"{address}/solutions?run={older}")
    table = page.locator("[data-testid=stDataFrame] canvas").first
    expect(table).to_be_visible(timeout=60_000)
    table.click(position={"x": 20, "y": 35 * 3 + 17}, force=True)
    detail = page.get_by_text("The prompt, exactly as sent")
    expect(detail).to_be_visible(timeout=30_000)
    for temperature in ("0.2", "0.4"):  # the same questions, with other solutions
        page.get_by_label("Temperature").click()
        page.get_by_role("option", name=temperature, exact=True).click()
        expect(detail).to_have_count(0, timeout=30_000)
        table.click(position={"x": 20, "y": 35 * 3 + 17}, force=True)
        expect(detail).to_be_visible(timeout=30_000)
    search = page.get_by_label("Search in questions and solutions")
    search.fill("no such word")
    search.press("Enter")
    expect(page.get_by_text("0 solutions")).to_be_visible(timeout=30_000)
    expect(detail).to_have_count(0, timeout=30_000)
    expect(page.get_by_role("tab")).to_have_count(5)


def test_whatever_breaks_is_a_sentence_with_the_place_of_its_traceback(app, page):
    address, home, older = app
    kept = store_path(home).with_suffix(".kept")
    shutil.copy(store_path(home), kept)
    with duckdb.connect(store_path(home)) as connection:
        for table in ("evals", "solutions", "weight_change"):
            connection.execute(f"DROP TABLE {table}")
    try:
        for name in ("live", "accuracy", "solutions", "layers"):
            page.goto(f"{address}/{name}?run={older}")
            expect(page.get_by_text(f"Its traceback is in {home / 'screen.log'}").first).to_be_visible(timeout=60_000)
            assert page.locator("[data-testid=stException]").count() == 0
            assert page.get_by_text("most recent call").count() == page.get_by_role("link", name="Ask").count() == 0
    finally:
        kept.replace(store_path(home))
    assert "Table with name evals does not exist" in (home / "screen.log").read_text()


@pytest.mark.parametrize("width", [420, 1024, 1440])
def test_no_legend_lies_over_words(app, page, width):
    address, _, older = app
    page.set_viewport_size({"width": width, "height": 900})
    for name in ("live", "accuracy", "layers"):
        page.goto(f"{address}/{name}?run={older}")
        expect(page.locator(".legendtext").first).to_be_attached(timeout=60_000)
        assert page.evaluate(COLLISIONS) == [], name


def test_no_page_and_no_toolbar_knows_a_foreign_address(app, page):
    address, _, older = app
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    for path in PAGES.values():
        page.goto(f"{address}/{path}?run={older}")
        expect(page.locator("[data-testid=stSidebar]").get_by_role("link", name="SQL")).to_be_visible(timeout=60_000)
        page.wait_for_function("() => !document.querySelector('[data-testid=stStatusWidget]')", timeout=30_000)
        if path in ("live", "accuracy", "layers"):
            expect(page.locator(".js-plotly-plot .modebar-btn").first).to_be_attached(timeout=30_000)
        titles, configs = page.evaluate(TITLES), page.evaluate(CONFIGS)
        assert not any("hare" in title or "loud" in title for title in titles)
        assert all(config == [False, "", "", False] for config in configs)
        assert page.evaluate(FOREIGN) == []
    assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []


def test_charts_of_a_notebook_and_of_a_downloaded_file_stay_here_too(app, page, tmp_path):
    address, _, older = app
    figure = charts.by_step(store.metrics_frame(store_path(app[1]), older, "loss"), "SFT loss")
    bundle = charts.pio.renderers["plotly_mimetype"].to_mimebundle(figure.to_dict())["application/vnd.plotly.v1+json"]
    page.goto(f"{address}/live?run={older}")
    expect(page.locator(".js-plotly-plot .modebar-btn").first).to_be_attached(timeout=60_000)
    with page.expect_download() as download:
        page.locator(".js-plotly-plot").nth(1).hover()
        page.locator(".js-plotly-plot").nth(1).locator("[data-title='Download as HTML']").click()
    download.value.save_as(tmp_path / "chart.html")
    page.goto(f"file://{tmp_path / 'chart.html'}")
    expect(page.locator(".modebar-btn").first).to_be_attached(timeout=30_000)
    assert page.evaluate(CONFIGS) == [[False, "", "", False]]
    page.evaluate("(b) => Plotly.newPlot('chart', b.data, b.layout, b.config)", json.loads(json.dumps(bundle)))
    assert page.evaluate(CONFIGS) == [[False, "", "", False]]
    assert not any("hare" in title for title in page.evaluate(TITLES))
