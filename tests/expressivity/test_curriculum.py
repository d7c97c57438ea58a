"""Stages by steps and by accuracy."""

import pytest

from hybrid_jax.errors import InputError
from hybrid_jax.expressivity.config import StageConfig
from hybrid_jax.expressivity.curriculum import Curriculum

STAGES = (StageConfig(length=8, num_steps=200), StageConfig(length=16, num_steps=300))


def lengths_of(curriculum, accuracies, num_steps=100):
    """The length before each check, and after the last."""
    found = [curriculum.length]
    for accuracy in accuracies:
        curriculum.advance(num_steps, accuracy)
        found.append(curriculum.length)
    return found


def test_by_steps_alone_accuracy_changes_nothing():
    assert lengths_of(Curriculum(STAGES, None), [1.0] * 5) == [8, 8, 16, 16, 16, None]


def test_a_mastered_stage_ends_early_and_the_last_ends_the_run():
    assert lengths_of(Curriculum(STAGES, 0.95), [0.95, 0.94, 0.96]) == [8, 16, 16, None]


def test_an_unmastered_stage_ends_with_its_steps():
    assert lengths_of(Curriculum(STAGES, 0.95), [0.5] * 5) == [8, 8, 16, 16, 16, None]


def test_steps_of_one_stage_do_not_count_for_the_next():
    assert lengths_of(Curriculum(STAGES, 0.95), [0.5, 0.95, 0.5, 0.5, 0.5]) == [8, 8, 16, 16, 16, None]


def test_stages_without_length_or_steps_are_refused():
    with pytest.raises(InputError, match="length: found 0, expected at least 1"):
        StageConfig(length=0, num_steps=1)
