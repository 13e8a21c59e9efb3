from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opid_core import methods
from opid_core.config import MethodConfig
from opid_core.errors import ConfigError, DataError

BATCH = methods.Batch(
    scores=np.array([10, 10, 0], dtype=np.float32),
    outcomes=np.array([10, 10, 0], dtype=np.float32),
    group_ids=["g", "g", "g"],
    trajectory_ids=["x", "x", "y"],
    response_mask=np.array([[1, 1], [1, 0], [1, 1]], dtype=bool),
    old_log_probs=np.array([[-1, -1], [-1, np.nan], [-2, -2]], dtype=np.float32),
    skill_log_probs=np.array([[-3, 0], [0, np.nan], [-1, -4]], dtype=np.float32),
    routes=["episode", "none", "step"],
)
CONFIG = MethodConfig(baseline="trajectory", normalize="mean", lambda_episode=0.5, lambda_step=0.25)


def compute(name: str, batch: methods.Batch, config: MethodConfig) -> methods.Advantages:
    return methods.get(name)(batch, config)


def test_grpo():
    result = compute("grpo", BATCH, CONFIG)
    assert result.outcome.tolist() == [5.0, 5.0, -5.0]
    assert result.total.tolist() == [[5, 5], [5, 0], [-5, -5]]
    assert not result.skill.any()
    assert result.total.dtype == np.float32


def test_opid_adds_each_routes_weighted_signal():
    result = compute("opid", BATCH, CONFIG)
    assert result.skill.tolist() == [[-1.0, 0.5], [0, 0], [0.25, -0.5]]
    assert result.total.tolist() == [[4.0, 5.5], [5, 0], [-4.75, -5.5]]
    assert result.total.dtype == np.float32


def test_opid_clips_before_weighing():
    result = compute("opid", BATCH, CONFIG.model_copy(update={"clip_skill": 0.5}))
    assert result.skill.tolist() == [[-0.25, 0.25], [0, 0], [0.125, -0.125]]


def test_shares_count_valid_tokens():
    # outcome 5 * 5 tokens, skill 1 + 0.5 + 0.25 + 0.5
    result = methods.shares(compute("opid", BATCH, CONFIG), BATCH.response_mask)
    assert result == pytest.approx({"outcome": 25 / 27.25, "skill": 2.25 / 27.25})
    nothing = replace(BATCH, scores=np.zeros(3, np.float32), routes=["none"] * 3)
    assert methods.shares(compute("opid", nothing, CONFIG), BATCH.response_mask) == {"outcome": 0.0, "skill": 0.0}


def test_tied_groups_follow_the_config():
    batch = replace(BATCH, scores=np.array([0, -1, 0], np.float32), outcomes=np.zeros(3, np.float32))
    assert compute("opid", batch, CONFIG).outcome.any()
    assert not compute("opid", batch, CONFIG.model_copy(update={"tied_groups": "zero"})).outcome.any()


def test_unknown_names():
    with pytest.raises(ConfigError, match="'ppo'; known: grpo, opid"):
        methods.get("ppo")
    with pytest.raises(DataError, match="'both' is none of step"):
        compute("opid", replace(BATCH, routes=["both", "none", "none"]), CONFIG)


@settings(deadline=None)
@given(
    st.integers(0, 2**31),
    st.integers(1, 12),
    st.integers(1, 5),
    st.sampled_from(["step", "trajectory"]),
    st.sampled_from(["mean", "mean_std"]),
    st.booleans(),
)
def test_without_weight_or_skills_opid_is_grpo_bit_for_bit(seed, n_samples, n_tokens, baseline, normalize, standardise):
    generator = np.random.default_rng(seed)
    old, skill = generator.normal(size=(2, n_samples, n_tokens)).astype(np.float32)
    batch = methods.Batch(
        scores=generator.normal(size=n_samples).astype(np.float32),
        outcomes=generator.integers(0, 2, n_samples).astype(np.float32),
        group_ids=[str(i) for i in generator.integers(0, 3, n_samples)],
        trajectory_ids=[str(i) for i in generator.integers(0, 4, n_samples)],
        response_mask=generator.random((n_samples, n_tokens)) < 0.8,
        old_log_probs=old,
        skill_log_probs=skill,
        routes=generator.choice(["step", "episode", "none"], n_samples).tolist(),
    )
    config = MethodConfig(baseline=baseline, normalize=normalize, normalize_skill=standardise)
    grpo = compute("grpo", batch, config).total.tobytes()
    weightless = config.model_copy(update={"lambda_episode": 0.0, "lambda_step": 0.0})
    assert compute("opid", batch, weightless).total.tobytes() == grpo
    unrouted = replace(batch, routes=["none"] * n_samples, skill_log_probs=np.full_like(skill, np.nan))
    assert compute("opid", unrouted, config).total.tobytes() == grpo
