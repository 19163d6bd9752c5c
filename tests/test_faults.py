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


@pytest.mark.slow
def test_killed_at_random_moments_a_run_comes_to_the_same_table(finished_run, home):
    chance = random.Random(1)
    targets = chance.sample(TARGETS, len(TARGETS))
    app = App(home)
    try:
        points = interrupted(home, small_config(), tables_of(finished_run), targets, USUAL_S, chance, app)
    finally:
        app.kill()
    assert points, "the run was over before anything was killed"
    assert not points[0].problems, points
    assert app.drawn and not app.exceptions
    assert not launch.unfinished(home)
