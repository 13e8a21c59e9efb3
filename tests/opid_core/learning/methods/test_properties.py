"""What must hold of every method (ALGORITHM, section 9)."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opid_core.learning.methods import BUILT_IN
from opid_core.samples import Ragged
from tests.opid_core.learning.methods.batches import compute, random_batch, total

KEYS = st.fixed_dictionaries(
    {
        "baseline": st.sampled_from(["step", "trajectory"]),
        "normalize": st.sampled_from(["mean", "mean_std"]),
        "tied_groups": st.sampled_from(["keep", "zero"]),
        "normalize_skill": st.booleans(),
        "clip_skill": st.sampled_from([None, 0.5]),
        "step_weight": st.sampled_from([0.0, 1.0]),
    }
)
BATCHES = st.builds(random_batch, st.integers(0, 2**31), st.integers(1, 12), st.integers(1, 5))


@settings(deadline=None)
@given(BATCHES, KEYS)
def test_without_weight_or_skills_opid_is_grpo_bit_for_bit(batch, keys):
    keys = keys | {"step_weight": 0.0}
    grpo = total(batch, compute("grpo", batch, **keys)).tobytes()
    weightless = keys | {"lambda_episode": 0.0, "lambda_step": 0.0}
    assert total(batch, compute("opid", batch, **weightless)).tobytes() == grpo
    nothing = pa.nulls(len(batch), pa.list_(pa.float32()))
    unrouted = batch.with_columns(route=["none"] * len(batch), added_log_probs=nothing, skill_log_probs=nothing)
    assert total(unrouted, compute("opid", unrouted, **keys)).tobytes() == grpo


@settings(deadline=None)
@given(BATCHES, KEYS)
def test_without_weight_gigpo_is_grpo_and_with_weight_opid_without_skills_is_gigpo(batch, keys):
    weightless = keys | {"step_weight": 0.0}
    gigpo, grpo = (total(batch, compute(name, batch, **weightless)) for name in ("gigpo", "grpo"))
    assert gigpo.tobytes() == grpo.tobytes()
    no_skills = keys | {"lambda_episode": 0.0, "lambda_step": 0.0}
    opid, gigpo = compute("opid", batch, **no_skills), compute("gigpo", batch, **keys)
    assert total(batch, opid).tobytes() == total(batch, gigpo).tobytes()


@pytest.mark.parametrize("name", BUILT_IN)
@settings(deadline=None, max_examples=30)
@given(BATCHES, KEYS, st.randoms())
def test_the_order_of_the_samples_does_not_matter(name, batch, keys, random):
    order = list(range(len(batch)))
    random.shuffle(order)
    shuffled = batch.select(np.array(order))
    expected = Ragged(total(batch, compute(name, batch, **keys)), batch.response_ids.offsets).take(np.array(order))
    result = compute(name, shuffled, **keys)
    np.testing.assert_allclose(total(shuffled, result), expected.values, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", BUILT_IN)
@settings(deadline=None, max_examples=30)
@given(BATCHES, KEYS)
def test_where_all_outcomes_tie_only_the_skill_teaches(name, batch, keys):
    """No penalties: every score is the outcome. A group of one trajectory has none to tie with."""
    tied = batch.with_columns(score=np.ones(len(batch), np.float32), outcome=["success"] * len(batch))
    members: dict[str, set[str]] = {}
    for group, trajectory in zip(tied.group_ids, tied.trajectory_ids, strict=True):
        members.setdefault(group, set()).add(trajectory)
    several = np.array([len(members[group]) > 1 for group in tied.group_ids])
    found = compute(name, tied, **keys)
    assert not found.outcome[several].any()
    if name != "opid":
        assert not found.skill[tied.per_token(several)].any()


@pytest.mark.parametrize("name", ["opid", "rlsd"])
@settings(deadline=None, max_examples=30)
@given(BATCHES, KEYS)
def test_a_skill_that_changes_nothing_teaches_nothing(name, batch, keys):
    old = batch.tokens("old_log_probs")
    unchanged = batch.with_columns(skill_log_probs=old, added_log_probs=old)
    assert not compute(name, unchanged, **keys).skill.any()
