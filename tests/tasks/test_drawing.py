"""Which train questions are sampled, and which are shown."""

import pytest

from workbench.config import SampleConfig
from workbench.tasks import Question, draw_questions


def test_examples_leave_something_to_sample():
    questions = [Question(f"train-{n}", f"{n}?", str(n), "So.") for n in range(4)]
    assert len(draw_questions(questions, None, SampleConfig(few_shot=3), seed=0)[0]) == 1
    with pytest.raises(ValueError, match="sample.few_shot is 4, which shows all 4 train questions and leaves none"):
        draw_questions(questions, None, SampleConfig(few_shot=4), seed=0)
