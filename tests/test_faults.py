"""`kill -9` at random moments of a pocket run: resumed, it comes to the table of an uninterrupted run."""

import random

import pytest

from benchmarks.faults import SETTINGS, TARGETS, App, interrupted, tables_of
from tests.conftest import SMALL, small_config
from workbench import launch

USUAL_S = 40.0
"""Seconds over which the kills of a run are spread; a busy machine takes longer, and is hit earlier in the run."""


def test_the_benchmark_makes_the_run_that_the_tests_make():
    assert SETTINGS == SMALL


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_at_random_moments_a_run_comes_to_the_same_table(finished_run, home, seed):
    chance = random.Random(seed)
    targets = chance.sample(TARGETS, len(TARGETS))
    if not seed:  # the quick one, without a browser's session
        targets = [target for target in targets if target != "app"][:2]
    app = App(home) if "app" in targets else None
    try:
        points = interrupted(home, small_config(), tables_of(finished_run), targets, USUAL_S, chance, app)
    finally:
        if app:
            app.kill()
    assert points, "the run was over before anything was killed"
    assert not points[0].problems, points
    assert app is None or (app.drawn and not app.exceptions)
    assert not launch.unfinished(home)
