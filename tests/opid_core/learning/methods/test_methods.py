from __future__ import annotations

from typing import get_args

import numpy as np
import pytest

from opid_core.config import MethodConfig
from opid_core.errors import ConfigError, DataError
from opid_core.learning import methods
from tests.opid_core.learning.methods.batches import BATCH, CONFIG, compute, log_probs, total


def test_grpo():
    result = compute("grpo", BATCH, CONFIG)
    assert result.outcome.tolist() == [5.0, 5.0, -5.0]
    assert total(BATCH, result).tolist() == [5, 5, 5, -5, -5]
    assert not result.skill.any()
    assert not result.step.any()
    assert result.outcome.dtype == np.float32


def test_opid_adds_each_routes_weighted_signal():
    result = compute("opid", BATCH, CONFIG)
    assert result.skill.tolist() == [-1.0, 0.5, 0, 0.25, -0.5]
    assert total(BATCH, result).tolist() == [4.0, 5.5, 5, -4.75, -5.5]
    assert result.skill.dtype == np.float32


def test_opid_clips_before_weighing():
    result = compute("opid", BATCH, CONFIG.model_copy(update={"clip_skill": 0.5}))
    assert result.skill.tolist() == [-0.25, 0.25, 0, 0.125, -0.125]


def test_opid_adds_both_skills_of_a_step():
    """y's step is scored under its episode skill too, with delta 2 and -1: half of that is added."""
    both = BATCH.with_columns(added_log_probs=log_probs(None, None, [0, -3]))
    assert compute("opid", both, CONFIG).skill.tolist() == [-1.0, 0.5, 0, 1.25, -1.0]
    # Standardised over all tokens under an episode skill: -2, 1, 2, -1 have mean 0 and population variance 2.5.
    result = compute("opid", both, CONFIG.model_copy(update={"normalize_skill": True, "lambda_step": 0.0}))
    expected = np.array([-2, 1, 0, 2, -1]) * 0.5 / (2.5**0.5 + 1e-6)
    np.testing.assert_allclose(result.skill, expected, rtol=1e-6)


def test_opid_can_have_a_step_advantage():
    result = compute("opid", BATCH, CONFIG.model_copy(update={"step_weight": 2.0}))
    assert result.step.tolist() == [9.5, 0.0, -9.5]
    assert total(BATCH, result).tolist() == [13.5, 15.0, 5, -14.25, -15.0]


def test_shares_count_valid_tokens():
    # outcome 5 * 5 tokens, step 2 * 4.75 + 2 * 4.75, skill 1 + 0.5 + 0.25 + 0.5
    config = CONFIG.model_copy(update={"step_weight": 1.0})
    result = methods.shares(compute("opid", BATCH, config), BATCH.response_ids.lengths)
    assert result == pytest.approx({"outcome": 25 / 46.25, "step": 19 / 46.25, "skill": 2.25 / 46.25})
    nothing = BATCH.with_columns(score=np.zeros(3, np.float32), route=["none"] * 3)
    shares = methods.shares(compute("opid", nothing, CONFIG), BATCH.response_ids.lengths)
    assert shares == {"outcome": 0.0, "step": 0.0, "skill": 0.0}


def test_tied_groups_follow_the_config():
    batch = BATCH.with_columns(score=np.array([0, -1, 0], np.float32), outcome=["failure"] * 3)
    for name in ("opid", "rloo"):
        assert compute(name, batch, CONFIG).outcome.any()
        assert not compute(name, batch, CONFIG.model_copy(update={"tied_groups": "zero"})).outcome.any()


def test_names():
    assert get_args(MethodConfig.model_fields["name"].annotation) == methods.NAMES
    with pytest.raises(ConfigError, match="'ppo'; known: grpo, gigpo, rloo"):
        methods.get("ppo")
    for name in ("opid", "rlsd"):
        with pytest.raises(DataError, match="'both' is none of step"):
            compute(name, BATCH.with_columns(route=["both", "none", "none"]), CONFIG)


def test_which_methods_use_skills_and_filter_ties():
    assert [name for name in methods.NAMES if not methods.get(name).uses_skills] == [
        "grpo",
        "gigpo",
        "rloo",
        "dapo",
        "skill_grpo",
    ]
    assert [name for name in methods.NAMES if methods.get(name).filters_ties] == ["dapo"]
