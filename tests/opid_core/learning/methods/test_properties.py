"""What must hold of every method (ALGORITHM, section 9)."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opid_core.config import MethodConfig
from opid_core.learning import methods
from opid_core.learning.methods import NAMES
from tests.opid_core.learning.methods.batches import compute, random_batch

CONFIGS = st.builds(
    MethodConfig,
    baseline=st.sampled_from(["step", "trajectory"]),
    normalize=st.sampled_from(["mean", "mean_std"]),
    tied_groups=st.sampled_from(["keep", "zero"]),
    normalize_skill=st.booleans(),
    clip_skill=st.sampled_from([None, 0.5]),
    step_weight=st.sampled_from([0.0, 1.0]),
)
BATCHES = st.builds(random_batch, st.integers(0, 2**31), st.integers(1, 12), st.integers(1, 5))


@settings(deadline=None)
@given(BATCHES, CONFIGS)
def test_without_weight_or_skills_opid_is_grpo_bit_for_bit(batch, config):
    config = config.model_copy(update={"step_weight": 0.0})
    grpo = compute("grpo", batch, config).total.tobytes()
    weightless = config.model_copy(update={"lambda_episode": 0.0, "lambda_step": 0.0})
    assert compute("opid", batch, weightless).total.tobytes() == grpo
    unrouted = replace(
        batch,
        routes=["none"] * len(batch.routes),
        added=np.zeros_like(batch.added),
        skill_log_probs=np.full_like(batch.skill_log_probs, np.nan),
    )
    assert compute("opid", unrouted, config).total.tobytes() == grpo


@settings(deadline=None)
@given(BATCHES, CONFIGS)
def test_without_weight_gigpo_is_grpo_and_with_weight_opid_without_skills_is_gigpo(batch, config):
    weightless = config.model_copy(update={"step_weight": 0.0})
    assert compute("gigpo", batch, weightless).total.tobytes() == compute("grpo", batch, weightless).total.tobytes()
    no_skills = config.model_copy(update={"lambda_episode": 0.0, "lambda_step": 0.0})
    assert compute("opid", batch, no_skills).total.tobytes() == compute("gigpo", batch, config).total.tobytes()


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=30)
@given(BATCHES, CONFIGS, st.randoms(), st.integers(0, 3))
def test_neither_order_nor_padding_matters(name, batch, config, random, padding):
    order = list(range(len(batch.routes)))
    random.shuffle(order)
    expected, found = compute(name, batch, config), compute(name, padded(permuted(batch, order), padding), config)
    np.testing.assert_allclose(found.total[:, : expected.total.shape[1]], expected.total[order], rtol=1e-5, atol=1e-5)
    assert not found.total[:, expected.total.shape[1] :].any()
    np.testing.assert_allclose(found.outcome, expected.outcome[order], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=30)
@given(BATCHES, CONFIGS)
def test_the_parts_add_up_on_response_tokens_and_nowhere_else(name, batch, config):
    found = compute(name, batch, config)
    parts = np.where(batch.response_mask, (found.outcome + found.step)[:, None] + found.skill, 0)
    np.testing.assert_allclose(found.total, parts, rtol=1e-6, atol=1e-6)
    assert not found.skill[~batch.response_mask].any()


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=30)
@given(BATCHES, CONFIGS)
def test_where_all_outcomes_tie_only_the_skill_teaches(name, batch, config):
    """No penalties: every score is the outcome. A group of one trajectory has none to tie with."""
    tied = replace(batch, scores=np.ones_like(batch.scores), outcomes=np.ones_like(batch.outcomes))
    members: dict[str, set[str]] = {}
    for group, trajectory in zip(tied.group_ids, tied.trajectory_ids, strict=True):
        members.setdefault(group, set()).add(trajectory)
    several = np.array([len(members[group]) > 1 for group in tied.group_ids])
    found = compute(name, tied, config)
    assert not found.outcome[several].any()
    if name != "opid":
        assert not found.skill[several].any()


@pytest.mark.parametrize("name", ["opid", "rlsd"])
@settings(deadline=None, max_examples=30)
@given(BATCHES, CONFIGS)
def test_a_skill_that_changes_nothing_teaches_nothing(name, batch, config):
    unchanged = replace(batch, skill_log_probs=batch.old_log_probs, added_log_probs=batch.old_log_probs)
    assert not compute(name, unchanged, config).skill.any()


def permuted(batch: methods.Batch, order: list[int]) -> methods.Batch:
    def taken(values: Any) -> Any:
        return values[order] if isinstance(values, np.ndarray) else [values[i] for i in order]

    return replace(batch, **{f.name: taken(getattr(batch, f.name)) for f in fields(batch) if f.name != "iteration"})


def padded(batch: methods.Batch, tokens: int) -> methods.Batch:
    """Further tokens that are no response, with garbage in them."""
    return replace(
        batch,
        response_mask=np.pad(batch.response_mask, ((0, 0), (0, tokens))),
        **{
            name: np.pad(getattr(batch, name), ((0, 0), (0, tokens)), constant_values=np.nan)
            for name in ("old_log_probs", "skill_log_probs", "added_log_probs")
        },
    )
