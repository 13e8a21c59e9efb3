from __future__ import annotations

import numpy as np
import pytest

from tests.opid_core.learning.methods.batches import BATCH, CONFIG, compute, log_probs, total


@pytest.mark.parametrize(
    ("iteration", "share"),
    [(1, 0.5), (51, 0.25), (101, 0.0), (131, 0.0)],
)
def test_tokens_get_more_or_less_of_the_credit(iteration, share):
    """x (A = 5): delta -2 and 1 are weights 0.8 and 1.2; y (A = -5): delta 1 and -2 are weights 0.8 and 1.2; x's second
    step has no skill. The weights count with a share that falls from a half to nothing."""
    batch = BATCH.with_columns(iteration=[iteration] * 3)
    result = compute("rlsd", batch, CONFIG)
    less, more = 1 - 0.2 * share, 1 + 0.2 * share
    expected = [5 * less, 5 * more, 5, -5 * less, -5 * more]
    np.testing.assert_allclose(total(batch, result), expected, rtol=1e-6)
    np.testing.assert_allclose(result.skill, np.subtract(expected, [5, 5, 5, -5, -5]), atol=1e-6)


def test_small_deltas_are_not_clipped():
    batch = BATCH.with_columns(skill_log_probs=log_probs([-0.9, -0.9], None, [-1.9, -1.9]))
    result = total(batch, compute("rlsd", batch, CONFIG))
    # exp(0.1) = 1.105171 for the winner, exp(-0.1) = 0.904837 for the loser, each by half
    np.testing.assert_allclose(result[:2], [5 * 1.0525855] * 2, rtol=1e-6)
    np.testing.assert_allclose(result[3:], [-5 * 0.9524187] * 2, rtol=1e-6)


def test_a_tied_group_has_no_credit_to_share():
    tied = BATCH.with_columns(score=np.zeros(3, np.float32))
    assert not total(tied, compute("rlsd", tied, CONFIG)).any()
