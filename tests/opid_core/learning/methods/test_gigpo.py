from __future__ import annotations

import pytest

from tests.opid_core.learning.methods.batches import BATCH, CONFIG, compute, configured, total


def test_the_step_advantage_is_added():
    """x and y both saw state s, with returns 9.5 and 0: 4.75 above and below their mean; t was seen once."""
    result = compute("gigpo", BATCH, CONFIG.model_copy(update={"step_weight": 0.5}))
    assert result.step.tolist() == [2.375, 0.0, -2.375]
    assert result.outcome.tolist() == [5.0, 5.0, -5.0]
    assert total(BATCH, result).tolist() == [7.375, 7.375, 5.0, -7.375, -7.375]
    assert not result.skill.any()


def test_both_parts_are_normalised_alike():
    config = CONFIG.model_copy(update={"step_weight": 1.0, "normalize": "mean_std"})
    # Two values a and b: (a - mean) / std = 1 / sqrt(2), with Bessel's correction.
    result = compute("gigpo", BATCH, config)
    assert result.step.tolist() == pytest.approx([0.5**0.5, 0.0, -(0.5**0.5)], rel=1e-5)
    assert result.outcome.tolist() == pytest.approx([0.5**0.5, 0.5**0.5, -(0.5**0.5)], rel=1e-5)


def test_its_weight_is_1_unless_the_file_says_otherwise():
    assert configured("gigpo").step_weight == 1.0
    assert configured("gigpo", step_weight=0.25).step_weight == 0.25
    assert configured("opid").step_weight == 0.0
