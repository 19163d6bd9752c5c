"""The shipped default shows what the README says it shows: two whole pocket runs, on fewer test questions."""

import pytest

from tests.conftest import wait_for_end
from workbench import launch, store
from workbench.core.statistics import paired_difference
from workbench.rundir import store_path
from workbench.settings import build_config, load_settings

pytestmark = pytest.mark.effect
LAST = 3


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """All answers of a vanilla and an IMM run, under (method, iteration, kind, task)."""
    root = tmp_path_factory.mktemp("effect")
    # Of one group: they share the base's answers, the first samples and the first fine-tuning.
    shared = {"group": "effect", "analyze.enabled": False, "eval_questions": 200}
    ids = {
        method: launch.launch(build_config(load_settings("pocket"), shared | {"method": method}), root)
        for method in ("vanilla", "imm")
    }
    answers = {}
    for method, run_id in ids.items():
        assert wait_for_end(root, run_id, 2400)[0] == "done"
        frame = store.query(
            store_path(root),
            "SELECT o.*, c.kind FROM outcomes o JOIN checkpoints c USING (checkpoint_id)"
            " WHERE o.run_id = ? AND o.sample = 0 ORDER BY task, question_id",
            [run_id],
        )
        for key, rows in frame.groupby(["iteration", "kind", "task"]):
            answers[method, *key] = rows["is_correct"].to_numpy()
    return answers


OOD = ("pocket_words", "pocket_choice", "pocket_compare")


@pytest.mark.parametrize("task", ["pocket_steps", *OOD])
def test_the_base_is_neither_helpless_nor_finished(outcomes, task):
    assert len(outcomes["imm", 0, "base", task]) == 200
    assert 0.25 <= outcomes["imm", 0, "base", task].mean() <= 0.70


def change(outcomes, method, kind, tasks):
    """Paired difference of the last iteration's checkpoint to the base, over the questions of some tasks."""
    base = [right for task in tasks for right in outcomes[method, 0, "base", task]]
    last = [right for task in tasks for right in outcomes[method, LAST, kind, task]]
    return paired_difference(base, last)


def test_vanilla_gains_in_domain_and_loses_out_of_domain(outcomes):
    assert change(outcomes, "vanilla", "sft", ["pocket_steps"]).ci_low > 0
    assert any(change(outcomes, "vanilla", "sft", [task]).ci_high < 0 for task in OOD)
    assert change(outcomes, "vanilla", "sft", OOD).ci_high < 0


def test_imm_keeps_most_of_the_gain_and_restores_the_rest(outcomes):
    gain = change(outcomes, "imm", "merged", ["pocket_steps"])
    assert gain.ci_low > 0
    assert gain.value > 0.5 * change(outcomes, "vanilla", "sft", ["pocket_steps"]).value
    assert change(outcomes, "imm", "merged", OOD).value > change(outcomes, "vanilla", "sft", OOD).value
    assert change(outcomes, "imm", "merged", OOD).ci_high > 0
