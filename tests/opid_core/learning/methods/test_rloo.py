from __future__ import annotations

from dataclasses import replace

import numpy as np

from tests.opid_core.learning.methods.batches import BATCH, CONFIG, compute

# x won with a malformed second response (penalty 1), y lost, z won: one value each 9.5, 0, 10.
FOUR = replace(
    BATCH,
    scores=np.array([10, 9, 0, 10], np.float32),
    outcomes=np.array([10, 10, 0, 10], np.float32),
    group_ids=["g"] * 4,
    trajectory_ids=["x", "x", "y", "z"],
    response_mask=np.ones((4, 1), bool),
)


def test_each_trajectory_against_the_mean_of_the_others():
    # The others' means: of x (0 + 10) / 2 = 5, of y (9.5 + 10) / 2 = 9.75, of z (9.5 + 0) / 2 = 4.75.
    result = compute("rloo", FOUR, CONFIG)
    assert result.total.tolist() == [[5.0], [4.0], [-9.75], [5.25]]
    assert not result.skill.any()


def test_alone_in_a_group_there_is_no_baseline():
    alone = replace(FOUR, group_ids=["x", "x", "y", "z"])
    assert compute("rloo", alone, CONFIG).total.tolist() == [[10.0], [9.0], [0.0], [10.0]]


def test_equal_scores_give_exactly_0():
    tied = replace(FOUR, scores=np.full(4, 0.1, np.float32))
    assert not compute("rloo", tied, CONFIG).total.any()
