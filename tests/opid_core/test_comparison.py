from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from opid_core.comparison import detectable_difference, difference, success, success_by_type
from opid_core.errors import DataError
from opid_core.evaluation import Estimate, wilson_interval

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


def test_tasks_that_do_not_differ_do_not_make_a_result_certain():
    micro, macro = success(np.ones((10, 3)), ["a", "a", "b"])
    assert micro == macro
    assert (micro.low, micro.high) == pytest.approx(wilson_interval(3, 3))
    lost = np.zeros((2, 600))
    assert success(lost, ["a"] * 600)[0] == Estimate(0.0, *wilson_interval(0, 600))
    # Of 600 tasks none differs: of others 3.84 / (600 + 3.84) may, one way or the other.
    nothing = difference(lost, lost)
    assert (nothing.estimate.low, nothing.estimate.high) == pytest.approx((-0.006362, 0.006362), abs=1e-6)
    assert nothing.detectable is None
    estimate = difference(np.ones((1, 4)), np.zeros((1, 4))).estimate
    assert (estimate.mean, estimate.high) == pytest.approx((1.0, 1.0))
    assert estimate.low == pytest.approx(2 * wilson_interval(4, 4)[0] - 1)


def test_a_paired_difference_and_its_sign_flip_test():
    # Task differences 1, 1, 1, 1: of the 16 sign patterns two are as extreme, so p is near 1/8.
    every = difference(np.ones((1, 4)), np.zeros((1, 4)))
    assert every.estimate.mean == 1.0
    assert (every.seeds, every.tasks, every.means) == (1, 4, (1.0, 0.0))
    assert every.p_value == pytest.approx(2 / 16, abs=0.01)
    assert difference(WON, WON).p_value == 1.0
    # Shares of repetitions, task differences 1/4 and 3/4: two of the four sign patterns are as extreme.
    shares = np.array([[0.5, 1.0], [0.0, 0.5]])
    assert difference(shares, np.zeros((2, 2))).p_value == pytest.approx(1 / 2, abs=0.02)


def test_what_a_comparison_could_have_found_by_hand():
    # Mean 1/2, squares 4 x 1/4 over 3: standard error sqrt(1/3) / sqrt(4) = 0.288675; (1.959964 + 0.841621) times that
    assert detectable_difference(np.array([1.0, 0, 0, 1])) == pytest.approx(0.808748)
    assert detectable_difference(np.array([1.0])) is None
    assert detectable_difference(np.array([0.5, 0.5])) is None
    assert difference(np.ones((1, 4)), np.array([[0.0, 1, 1, 0]])).detectable == pytest.approx(0.808748)


def test_methods_on_other_tasks_cannot_be_paired():
    with pytest.raises(DataError, match="cannot be paired"):
        difference(WON, WON[:, :3])
    with pytest.raises(DataError, match=r"expected outcomes \[seeds, 3 tasks\]"):
        success(WON, TYPES[:3])


@given(arrays.arrays(float, st.tuples(st.integers(1, 3), st.integers(1, 6)), elements=st.sampled_from([0, 0.25, 1])))
def test_intervals_hold_the_mean_and_swapping_methods_turns_the_sign(won):
    micro, macro = success(won, ["a"] * won.shape[1], draws=200)
    assert (macro.mean, macro.low, macro.high) == pytest.approx((micro.mean, micro.low, micro.high))
    assert micro.low - 1e-12 <= micro.mean <= micro.high + 1e-12
    there, back = difference(won, 1 - won, draws=200), difference(1 - won, won, draws=200)
    assert there.estimate.mean == -back.estimate.mean
    assert there.p_value == back.p_value
