"""The page Queue in real Chromium: moving, holding, pausing, stopping; a double click."""

import pytest
from playwright.sync_api import expect

from tests.conftest import small_config, wait_until
from tests.test_browser import CHROMIUM, app, page  # noqa: F401  # fixtures
from workbench import launch, queueing
from workbench.rundir import all_runs

pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")]


def waiting(home):
    return [ticket.name for ticket in queueing.tickets(home)]


def test_the_queue_is_rearranged_held_and_emptied(home, app, page):  # noqa: F811
    queueing.change_settings(home, paused=True)
    a, b, c = (launch.launch(small_config(seed=seed), home) for seed in range(3))
    page.goto(f"{app}/queue")
    expect(page.get_by_text("Runs that work go on.")).to_be_visible(timeout=60_000)

    def click(icon, name):
        page.mouse.move(0, 0)  # off the last button, whose hint lies over the next
        page.locator(f".st-key-{icon}-{name}").get_by_role("button").click()

    def see(*names):
        """Lines that still change places are there twice for a moment, and lose what is typed into them."""
        wait_until(lambda: waiting(home) == list(names), 20)
        expect(page.locator("code", has_text="-imm-")).to_have_text(list(names), timeout=20_000)

    click("arrow_upward", c)
    see(a, c, b)
    click("pause", a)
    expect(page.get_by_text("held back")).to_be_visible(timeout=20_000)
    field = page.locator(f".st-key-priority-{b}-0 input")
    field.fill("5")
    field.press("Enter")
    see(b, a, c)
    click("stop_circle", a)
    see(b, c)
    click("stop_circle", b)
    see(c)
    click("stop_circle", c)
    expect(page.get_by_text("Nobody waits.")).to_be_visible(timeout=20_000)
    page.get_by_role("button", name="Go on").click()
    wait_until(lambda: not queueing.settings_of(home).paused, 20)


def test_a_double_click_starts_one_run(home, app, page):  # noqa: F811
    queueing.change_settings(home, paused=True)
    page.goto(app)
    page.get_by_role("button", name="Start the pocket run").dblclick()
    expect(page.get_by_text("○ queued")).to_be_visible(timeout=60_000)
    expect(page.get_by_text("Waiting: the queue is paused.")).to_be_visible(timeout=20_000)
    page.wait_for_timeout(2000)
    assert len(all_runs(home)) == len(waiting(home)) == 1
