from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from opid_core.errors import DataError
from opid_core.learning import advantages as adv

# Group a: trajectory x of 3 steps scoring 10, 10, 10 and y of 1 step scoring 0. Group b: one sample.
SCORES = np.array([10, 10, 10, 0, 7], dtype=np.float32)
GROUPS = ["a", "a", "a", "a", "b"]
TRAJECTORIES = ["x", "x", "x", "y", "z"]


def outcome(scores: np.ndarray = SCORES, baseline: Any = "step", normalize: Any = "mean", **options: Any):
    return adv.outcome_advantages(scores, GROUPS, TRAJECTORIES, baseline=baseline, normalize=normalize, **options)


def test_discounted_returns_per_trajectory_even_interleaved():
    rewards = np.array([1, 5, 0, 10, 2], dtype=np.float32)
    returns = adv.discounted_returns(rewards, ["x", "y", "x", "x", "y"], 0.5)
    # x: 1, 0, 10 -> 1 + .5 * 5, 0 + .5 * 10, 10; y: 5, 2 -> 6, 2
    assert returns.tolist() == [3.5, 6.0, 5.0, 10.0, 2.0]
    assert returns.dtype == np.float32


def test_penalty_is_the_steps_own():
    scores = adv.outcome_scores([True, True, False], [True, False, False], 10.0, 0.5)
    assert scores.tolist() == [10.0, 9.5, -0.5]
    assert adv.invalid_action_penalty(np.array([2.0, 3.0]), [False, True], 0.25).tolist() == [1.75, 3.0]


def test_step_baseline_weighs_long_trajectories_more():
    assert outcome().tolist() == [2.5, 2.5, 2.5, -7.5, 7.0]  # mean 30 / 4; a group of one sample keeps S


def test_trajectory_baseline_counts_each_trajectory_once():
    assert outcome(baseline="trajectory").tolist() == [5.0, 5.0, 5.0, -5.0, 7.0]


def test_trajectory_value_is_the_mean_of_its_steps():
    scores = np.array([10, 9, 8, 1, 7], dtype=np.float32)  # x: 9, y: 1 -> mean 5
    assert outcome(scores, "trajectory").tolist() == [5.0, 4.0, 3.0, -4.0, 7.0]


def test_mean_std_uses_bessels_correction():
    result = outcome(normalize="mean_std")
    std = 5.0  # squares 3 * 6.25 + 56.25 = 75; 75 / 3 = 25
    np.testing.assert_allclose(result, [2.5 / std, 2.5 / std, 2.5 / std, -7.5 / std, 7.0], rtol=1e-6)
    result = outcome(baseline="trajectory", normalize="mean_std")
    std = math.sqrt(50)  # values 10 and 0
    np.testing.assert_allclose(result, [5 / std, 5 / std, 5 / std, -5 / std, 7.0], rtol=1e-6)


def test_the_papers_std_is_the_populations_without_an_epsilon():
    result = outcome(normalize="mean_population_std")
    std = math.sqrt(75 / 4)  # squares 3 * 6.25 + 56.25
    np.testing.assert_allclose(result, [2.5 / std, 2.5 / std, 2.5 / std, -7.5 / std, 7.0], rtol=1e-6)
    # Two trajectories that score 10 and 0: exactly one std away from their mean.
    assert outcome(baseline="trajectory", normalize="mean_population_std").tolist() == [1.0, 1.0, 1.0, -1.0, 7.0]
    returns, groups, states = np.array([4, 2, 9], dtype=np.float32), ["g"] * 3, ["s", "s", "other"]
    assert adv.state_advantages(returns, groups, states, normalize="mean_population_std").tolist() == [1.0, -1.0, 0.0]


def test_a_group_of_one_trajectory_has_one_value_under_the_trajectory_baseline():
    scores = np.array([4, 2], dtype=np.float32)
    result = adv.outcome_advantages(scores, ["g", "g"], ["t", "t"], baseline="trajectory", normalize="mean_std")
    assert result.tolist() == [4.0, 2.0]


def test_the_same_trajectory_id_in_two_groups_is_two_trajectories():
    scores = np.array([1, 3, 5, 9], dtype=np.float32)
    ids = ["t", "u", "t", "u"]
    result = adv.outcome_advantages(scores, [1, 1, 2, 2], ids, baseline="trajectory", normalize="mean")
    assert result.tolist() == [-1.0, 1.0, -2.0, 2.0]


def test_ties_are_decided_on_outcomes():
    # the outcomes of group a tie, its penalised scores do not
    kept = outcome(np.array([0, -0.1, 0, 0, 7], dtype=np.float32), normalize="mean_std")
    # mean -0.025, std 0.05: a penalty of 0.1 is scaled up to unit size
    np.testing.assert_allclose(kept[:4], [0.5, -1.5, 0.5, 0.5], rtol=1e-3)
    outcomes = np.array([0, 0, 0, 0, 10], dtype=np.float32)
    # one trajectory has nothing to tie with
    assert adv.tied_samples(outcomes, GROUPS, TRAJECTORIES).tolist() == [True, True, True, True, False]
    assert adv.tie_rate(outcomes, GROUPS, TRAJECTORIES) == 1.0
    assert adv.tie_rate([0, 0, 0, 10, 10], GROUPS, TRAJECTORIES) == 0.0
    assert adv.tie_rate([5.0], ["a"], ["x"]) == 0.0


@pytest.mark.parametrize("option", ["baseline", "normalize"])
def test_unknown_options_are_named(option):
    with pytest.raises(DataError, match=f"{option}: 'other' is none of"):
        outcome(**{option: "other"})  # pyright: ignore[reportArgumentType]


def test_unequal_lengths_are_named():
    with pytest.raises(DataError, match="scores 2"):
        outcome(SCORES[:2])


@pytest.mark.parametrize("baseline", ["step", "trajectory"])
@pytest.mark.parametrize("normalize", ["mean", "mean_std", "mean_population_std"])
@pytest.mark.parametrize("value", [0.1, 10.0, -0.3])
def test_equal_scores_give_exactly_zero(baseline, normalize, value):
    scores = np.full(7, value, dtype=np.float32)
    result = adv.outcome_advantages(scores, ["g"] * 7, list("aabbbcc"), baseline=baseline, normalize=normalize)
    assert result.tolist() == [0.0] * 7


def test_state_advantages_group_equal_states_of_one_group():
    returns = np.array([4, 2, 9, 5], dtype=np.float32)
    groups, states = ["g", "g", "g", "h"], ["s", "s", "other", "s"]
    assert adv.state_advantages(returns, groups, states, normalize="mean").tolist() == [1.0, -1.0, 0.0, 0.0]
    scaled = adv.state_advantages(returns, groups, states, normalize="mean_std")
    np.testing.assert_allclose(scaled, [1 / math.sqrt(2), -1 / math.sqrt(2), 0, 0], rtol=1e-5)


def test_similar_states_join_the_first_cluster():
    returns = np.array([1, 3, 5, 7], dtype=np.float32)
    # ratio("abcd", "abce") = 6 / 8 = 0.75; "abff" is 0.5 to the representative "abcd", 0.5 to none else
    states = ["abcd", "abce", "abff", "abcd"]
    result = adv.state_advantages(returns, ["g"] * 4, states, normalize="mean", similarity=0.75)
    np.testing.assert_allclose(result, [1 - 11 / 3, 3 - 11 / 3, 0.0, 7 - 11 / 3], rtol=1e-6)
    exact = adv.state_advantages(returns, ["g"] * 4, states, normalize="mean")
    assert exact.tolist() == [-3.0, 0.0, 0.0, 3.0]
    apart = adv.state_advantages(returns[:2], ["g", "h"], ["abcd", "abce"], normalize="mean", similarity=0.75)
    assert apart.tolist() == [0.0, 0.0]


def test_similarity_needs_texts():
    with pytest.raises(DataError, match="texts, got int"):
        adv.state_advantages([1.0, 2.0], ["g", "g"], [1, 2], normalize="mean", similarity=0.9)


SKILL = np.array([[-1.0, -2.0, np.nan], [-3.0, -1.0, -1.0]], dtype=np.float32)
OLD = np.array([[-1.5, -1.0, 0.0], [-1.0, -1.0, -5.0]], dtype=np.float32)
MASK = np.array([[1, 1, 0], [1, 1, 1]])


def test_skill_advantages_are_masked_and_routed_differences():
    both = adv.skill_advantages(SKILL, OLD, MASK, [True, True])
    assert both.tolist() == [[0.5, -1.0, 0.0], [-2.0, 0.0, 4.0]]
    assert adv.skill_advantages(SKILL, OLD, MASK, [False, True]).tolist() == [[0, 0, 0], [-2.0, 0.0, 4.0]]
    assert not adv.skill_advantages(SKILL, OLD, MASK, [False, False], normalize=True).any()


def test_skill_advantages_clip_after_normalising():
    clipped = adv.skill_advantages(SKILL, OLD, MASK, [True, True], clip=0.75)
    assert clipped.tolist() == [[0.5, -0.75, 0.0], [-0.75, 0.0, 0.75]]
    # routed signal -2, 0, 4: mean 2/3, population std sqrt(56 / 9)
    std = math.sqrt(56 / 9)
    normal = adv.skill_advantages(SKILL, OLD, MASK, [False, True], normalize=True)
    np.testing.assert_allclose(normal[1], [(-8 / 3) / std, (-2 / 3) / std, (10 / 3) / std], rtol=1e-5)
    both = adv.skill_advantages(SKILL, OLD, MASK, [False, True], normalize=True, clip=1.0)
    np.testing.assert_allclose(both[1], [-1.0, (-2 / 3) / std, 1.0], rtol=1e-5)


def test_normalising_a_constant_signal_leaves_no_signal():
    skill, old = np.full((2, 2), -1.0, np.float32), np.full((2, 2), -2.0, np.float32)
    assert not adv.skill_advantages(skill, old, np.ones((2, 2)), [1, 1], normalize=True).any()


def test_an_unchanged_prompt_gives_exactly_zero():
    assert not adv.skill_advantages(OLD, OLD, MASK, [True, True]).any()


def test_non_finite_signal_is_an_error():
    with pytest.raises(DataError, match="not finite"):
        adv.skill_advantages(SKILL, OLD, np.ones((2, 3)), [True, True])


def test_tensors_in_tensors_out():
    scores = torch.from_numpy(SCORES)
    groups, trajectories = torch.tensor([0, 0, 0, 0, 1]), torch.tensor([0, 0, 0, 1, 2])
    result = adv.outcome_advantages(scores, groups, trajectories, baseline="step", normalize="mean")
    assert isinstance(result, torch.Tensor)
    assert result.dtype == torch.float32
    assert result.tolist() == [2.5, 2.5, 2.5, -7.5, 7.0]
    returns = adv.discounted_returns(torch.tensor([1.0, 1.0]), torch.tensor([5, 5]), 0.5)
    assert isinstance(returns, torch.Tensor)
    assert returns.tolist() == [1.5, 1.0]
    skill = torch.tensor([[-1.0]], requires_grad=True)
    delta = adv.skill_advantages(skill, torch.tensor([[-2.0]]), torch.tensor([[1]]), torch.tensor([True]))
    assert delta.tolist() == [[1.0]]
    assert not delta.requires_grad
    states = adv.state_advantages(torch.tensor([1.0, 3.0]), [0, 0], ["s", "s"], normalize="mean")
    assert isinstance(states, torch.Tensor)
    assert states.tolist() == [-1.0, 1.0]


def test_any_hashable_is_an_id():
    result = adv.outcome_advantages(
        np.array([1.0, 3.0]), [("a", 1), ("a", 1)], [None, frozenset()], baseline="trajectory", normalize="mean"
    )
    assert result.tolist() == [-1.0, 1.0]


def test_no_samples_give_no_advantages():
    assert adv.outcome_advantages([], [], [], baseline="trajectory", normalize="mean_std").tolist() == []
    assert adv.discounted_returns([], [], 0.9).tolist() == []
    assert adv.state_advantages([], [], [], normalize="mean").tolist() == []


samples = st.lists(
    st.tuples(st.floats(-10, 10, width=32), st.integers(0, 3), st.integers(0, 4), st.integers(0, 2)),
    min_size=1,
    max_size=40,
)


@settings(deadline=None)
@given(samples, st.sampled_from(["step", "trajectory"]), st.sampled_from(["mean", "mean_std"]), st.randoms())
def test_permuting_samples_permutes_advantages(rows, baseline, normalize, random):
    order = list(range(len(rows)))
    random.shuffle(order)

    def compute(indices):
        scores, groups, trajectories, states = (list(c) for c in zip(*(rows[i] for i in indices), strict=True))
        scores = np.array(scores, dtype=np.float64)
        return (
            adv.outcome_advantages(scores, groups, trajectories, baseline=baseline, normalize=normalize),
            adv.state_advantages(scores, groups, states, normalize=normalize),
        )

    for straight, shuffled in zip(compute(range(len(rows))), compute(order), strict=True):
        np.testing.assert_allclose(shuffled, straight[order], rtol=1e-6, atol=1e-6)


@settings(deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 3), st.integers(0, 2**31))
def test_padding_changes_no_skill_advantage(n_samples, n_tokens, padding, seed):
    generator = np.random.default_rng(seed)
    skill, old = generator.normal(size=(2, n_samples, n_tokens)).astype(np.float32)
    mask = generator.random((n_samples, n_tokens)) < 0.7
    routed = generator.random(n_samples) < 0.7
    plain = adv.skill_advantages(skill, old, mask, routed, normalize=True)

    def pad(array, value):
        return np.pad(array, ((0, 0), (0, padding)), constant_values=value)

    padded = adv.skill_advantages(pad(skill, np.nan), pad(old, -9), pad(mask, False), routed, normalize=True)
    assert (padded[:, :n_tokens] == plain).all()
    assert not padded[:, n_tokens:].any()
