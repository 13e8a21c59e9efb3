from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from opid_core.comparison import area_under_curve, difference, mean_curve, success, success_by_type
from opid_core.errors import DataError

TYPES = ["cool", "cool", "cool", "heat"]
WON = np.array([[1, 1, 0, 0], [1, 0, 0, 1]], float)  # two seeds, four tasks


def test_micro_and_macro_are_means_over_seeds():
    micro, macro = success(WON, TYPES)
    assert micro.mean == 4 / 8
    # cool: 3 of 6, heat: 1 of 2
    assert macro.mean == (3 / 6 + 1 / 2) / 2
    assert success_by_type(WON, TYPES) == {"cool": 0.5, "heat": 0.5}


def test_the_interval_is_the_bootstrap_of_seeds_and_tasks():
    # One seed, one won of two tasks: two draws with replacement give 0, 1/2 or 1 with chances 1/4, 1/2, 1/4.
    micro, _ = success(np.array([[1.0, 0]]), ["a", "a"])
    assert (micro.low, micro.high) == (0.0, 1.0)
    # Three seeds that agree share the drawn tasks, so they tell no more than one: 0 with chance 1/4. Tasks drawn for
    # each seed apart would give 0 with chance 1/64 only, and an interval from 1/6 to 5/6.
    agreeing = np.array([[1.0, 0]] * 3)
    micro, _ = success(agreeing, ["a", "a"])
    assert (micro.mean, micro.low, micro.high) == (0.5, 0.0, 1.0)
    estimate = difference(agreeing, 1 - agreeing).estimate
    assert (estimate.low, estimate.high) == (-1.0, 1.0)
    # Two tasks alike leave the draw of seeds: of the one of three that won, none with chance 8/27, thrice with 1/27.
    micro, _ = success(np.array([[1.0, 1], [0, 0], [0, 0]]), ["a", "a"])
    assert (micro.low, micro.high) == (0.0, 1.0)
    # Ten seeds that agree on every task leave the draw of tasks alone; equal tasks leave nothing.
    micro, _ = success(np.ones((10, 3)), ["a", "a", "b"])
    assert (micro.mean, micro.low, micro.high) == (1.0, 1.0, 1.0)


def test_a_paired_difference_and_its_sign_flip_test():
    # Task differences 1, 1, 1, 1: of the 16 sign patterns two are as extreme, so p is near 1/8.
    found = difference(np.ones((1, 4)), np.zeros((1, 4)))
    assert found.estimate.mean == 1.0
    assert found.p_value == pytest.approx(2 / 16, abs=0.01)
    assert difference(WON, WON).p_value == 1.0


def test_repetitions_count_as_the_share_of_a_task():
    shares = np.array([[0.5, 1.0], [0.0, 0.5]])
    micro, _ = success(shares, ["a", "a"])
    assert (micro.mean, success_by_type(shares, ["a", "b"])) == (0.5, {"a": 0.25, "b": 0.75})
    # Task differences 1/4 and 3/4: two of the four sign patterns are as extreme.
    assert difference(shares, np.zeros((2, 2))).p_value == pytest.approx(1 / 2, abs=0.02)


def test_methods_on_other_tasks_cannot_be_paired():
    with pytest.raises(DataError, match="cannot be paired"):
        difference(WON, WON[:, :3])
    with pytest.raises(DataError, match=r"expected outcomes \[seeds, 3 tasks\]"):
        success(WON, TYPES[:3])


def test_area_under_a_curve_by_hand():
    episodes, won = np.array([0.0, 100, 300]), np.array([0.2, 0.4, 0.4])
    # Trapezoids: 100 * (0.2 + 0.4) / 2 + 200 * (0.4 + 0.4) / 2 = 110, over 300 episodes.
    assert area_under_curve(episodes, won, 300) == pytest.approx(110 / 300)
    # Success is 0.3 after 50 episodes: (0.2 + 0.3) / 2. After 200: 30 and 100 * 0.4, over 200.
    assert area_under_curve(episodes, won, 50) == pytest.approx(0.25)
    assert area_under_curve(episodes, won, 200) == pytest.approx(70 / 200)
    assert area_under_curve(np.array([0.0]), np.array([0.3]), 0) == 0.3


def test_the_mean_of_curves_is_taken_at_the_same_number_of_episodes():
    one = np.array([0.0, 10, 20]), np.array([0.0, 0.5, 1.0])
    other = np.array([0.0, 5, 40]), np.array([0.0, 0.5, 0.5])
    at, mean = mean_curve([one, other])
    assert at.tolist() == [0.0, 5.0, 10.0, 20.0]  # 40 is beyond the first
    # At 5: (0.25 + 0.5) / 2, at 10: (0.5 + 0.5) / 2, at 20: (1 + 0.5) / 2
    assert mean.tolist() == [0.0, 0.375, 0.5, 0.75]


@given(arrays.arrays(float, st.tuples(st.integers(1, 3), st.integers(1, 6)), elements=st.sampled_from([0, 0.25, 1])))
def test_intervals_hold_the_mean_and_swapping_methods_turns_the_sign(won):
    micro, macro = success(won, ["a"] * won.shape[1], draws=200)
    assert (macro.mean, macro.low, macro.high) == pytest.approx((micro.mean, micro.low, micro.high))
    assert micro.low - 1e-12 <= micro.mean <= micro.high + 1e-12
    there, back = difference(won, 1 - won, draws=200), difference(1 - won, won, draws=200)
    assert there.estimate.mean == -back.estimate.mean
    assert there.p_value == back.p_value
