"""The reference solutions are done; with a planted mistake, the step, the place and the cause are named."""

import pytest

from ftcore.lessons import generation_steps, t5_steps, training_steps
from ftcore.lessons.runner import DONE, STEP_FILES, WRONG
from tests.helpers.course_checks import SOLUTIONS, Planted, check_step, edited_solutions
from tests.lessons import (
    generation_mistakes,
    generation_styles,
    gpt2_mistakes,
    gpt2_styles,
    t5_mistakes,
    t5_styles,
    training_mistakes,
    training_styles,
)

MISTAKES = [
    *gpt2_mistakes.MISTAKES,
    *t5_mistakes.MISTAKES,
    *generation_mistakes.MISTAKES,
    *training_mistakes.MISTAKES,
]
STYLES = [
    *gpt2_styles.STYLES,
    *t5_styles.STYLES,
    *generation_styles.STYLES,
    *training_styles.STYLES,
]
WRITTEN = [number for number, file in enumerate(STEP_FILES, 1) if (SOLUTIONS / file).exists()]


@pytest.mark.parametrize("step", WRITTEN)
def test_reference_solution_is_done(step):
    result = check_step(SOLUTIONS, step)
    assert result.status == DONE, (result.what, result.report, result.causes)


@pytest.mark.parametrize(
    ("step", "module", "note"),
    [
        (10, t5_steps, t5_steps.NOT_SHIPPED),
        (11, generation_steps, ""),
        (12, generation_steps, ""),
        (14, training_steps, t5_steps.NOT_SHIPPED),
    ],
)
def test_steps_are_checked_without_the_shipped_weights(step, module, note, monkeypatch):
    monkeypatch.setattr(module, "shipped", lambda name: None)
    result = check_step(SOLUTIONS, step)
    assert (result.status, result.note) == (DONE, note)


@pytest.mark.parametrize("planted", MISTAKES, ids=lambda planted: f"{planted.step}: {planted.new}")
def test_planted_mistake_is_named(planted: Planted, tmp_path):
    result = check_step(edited_solutions(tmp_path, planted.step, planted.old, planted.new), planted.step)
    assert result.status == WRONG, result
    assert planted.found in f"{result.what}\n{result.report}", result
    assert planted.cause in " ".join(result.causes), result
    assert bool(planted.cause) == bool(result.causes), result


@pytest.mark.parametrize(("step", "old", "new"), STYLES, ids=[f"{step}: {new}" for step, _, new in STYLES])
def test_another_style_is_done(step: int, old: str, new: str, tmp_path):
    result = check_step(edited_solutions(tmp_path, step, old, new), step)
    assert result.status == DONE, (result.what, result.report, result.causes)
