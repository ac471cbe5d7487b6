"""Planted mistakes of steps 1 to 6."""

from tests.helpers.course_checks import Planted

MISTAKES = [
    Planted(1, "scores - scores.amax(dim=-1, keepdim=True)", "scores", "softmax([[1000", "infinite"),
]
