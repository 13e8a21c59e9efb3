from __future__ import annotations

import numpy as np

from opid_core.samples import Ragged, Samples
from tests.opid_core.learning.methods.batches import CONFIG, compute, total

# x won with a malformed second response (penalty 1), y lost, z won: one value each 9.5, 0, 10.
FOUR = Samples.from_columns(
    score=np.array([10, 9, 0, 10], np.float32),
    outcome=["success", "success", "failure", "success"],
    group_id=["g"] * 4,
    trajectory_id=["x", "x", "y", "z"],
    response_ids=Ragged.from_rows([[1]] * 4, np.int32),
)


def test_each_trajectory_against_the_mean_of_the_others():
    # The others' means: of x (0 + 10) / 2 = 5, of y (9.5 + 10) / 2 = 9.75, of z (9.5 + 0) / 2 = 4.75.
    result = compute("rloo", FOUR, CONFIG)
    assert total(FOUR, result).tolist() == [5.0, 4.0, -9.75, 5.25]
    assert not result.skill.any()


def test_alone_in_a_group_there_is_no_baseline():
    alone = FOUR.with_columns(group_id=["x", "x", "y", "z"])
    assert compute("rloo", alone, CONFIG).outcome.tolist() == [10.0, 9.0, 0.0, 10.0]


def test_equal_scores_give_exactly_0():
    tied = FOUR.with_columns(score=np.full(4, 0.1, np.float32))
    assert not compute("rloo", tied, CONFIG).outcome.any()
