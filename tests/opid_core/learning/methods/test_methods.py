"""Each method's advantages by hand, its own keys and defaults; the losses are in test_losses.py."""

from __future__ import annotations

import numpy as np
import pytest

from opid_core.config import build_config
from opid_core.errors import ConfigError, DataError
from opid_core.learning import methods
from opid_core.samples import Ragged, Samples
from tests.opid_core.learning.methods.batches import BATCH, KEYS, compute, log_probs, method, total


@pytest.mark.parametrize("name", ["grpo", "grpo_opsd", "sdar", "skill_sd", "skill_grpo", "dapo"])
def test_the_outcome_advantage_alone(name):
    result = compute(name, BATCH)
    assert result.outcome.tolist() == [5.0, 5.0, -5.0]
    assert total(BATCH, result).tolist() == [5, 5, 5, -5, -5]
    assert not result.skill.any()
    assert not result.step.any()
    assert result.outcome.dtype == np.float32


def test_opsd_has_no_policy_gradient():
    assert total(BATCH, compute("opsd", BATCH)).tolist() == [0.0] * 5


def test_gigpo_adds_the_step_advantage():
    """x and y both saw state s, with returns 9.5 and 0: 4.75 above and below their mean; t was seen once."""
    result = compute("gigpo", BATCH, step_weight=0.5)
    assert result.step.tolist() == [2.375, 0.0, -2.375]
    assert result.outcome.tolist() == [5.0, 5.0, -5.0]
    assert total(BATCH, result).tolist() == [7.375, 7.375, 5.0, -7.375, -7.375]
    assert not result.skill.any()


def test_both_parts_are_normalised_alike():
    # Two values a and b: (a - mean) / std = 1 / sqrt(2), with Bessel's correction.
    result = compute("gigpo", BATCH, step_weight=1.0, normalize="mean_std")
    assert result.step.tolist() == pytest.approx([0.5**0.5, 0.0, -(0.5**0.5)], rel=1e-5)
    assert result.outcome.tolist() == pytest.approx([0.5**0.5, 0.5**0.5, -(0.5**0.5)], rel=1e-5)


# x won with a malformed second response (penalty 1), y lost, z won: one value each 9.5, 0, 10.
FOUR = Samples.from_columns(
    score=np.array([10, 9, 0, 10], np.float32),
    outcome=["success", "success", "failure", "success"],
    group_id=["g"] * 4,
    trajectory_id=["x", "x", "y", "z"],
    response_ids=Ragged.from_rows([[1]] * 4, np.int32),
)


def test_rloo_holds_each_trajectory_against_the_mean_of_the_others():
    # The others' means: of x (0 + 10) / 2 = 5, of y (9.5 + 10) / 2 = 9.75, of z (9.5 + 0) / 2 = 4.75.
    result = compute("rloo", FOUR)
    assert total(FOUR, result).tolist() == [5.0, 4.0, -9.75, 5.25]
    assert not result.skill.any()
    alone = FOUR.with_columns(group_id=["x", "x", "y", "z"])
    assert compute("rloo", alone).outcome.tolist() == [10.0, 9.0, 0.0, 10.0]
    equal = FOUR.with_columns(score=np.full(4, 0.1, np.float32))
    assert not compute("rloo", equal).outcome.any()  # exactly 0


def test_opid_adds_each_routes_weighted_signal():
    result = compute("opid", BATCH)
    assert result.skill.tolist() == [-1.0, 0.5, 0, 0.25, -0.5]
    assert total(BATCH, result).tolist() == [4.0, 5.5, 5, -4.75, -5.5]
    assert result.skill.dtype == np.float32


def test_opid_clips_before_weighing():
    assert compute("opid", BATCH, clip_skill=0.5).skill.tolist() == [-0.25, 0.25, 0, 0.125, -0.125]


def test_opid_adds_both_skills_of_a_step():
    """y's step is scored under its episode skill too, with delta 2 and -1: half of that is added."""
    both = BATCH.with_columns(added_log_probs=log_probs(None, None, [0, -3]))
    assert compute("opid", both).skill.tolist() == [-1.0, 0.5, 0, 1.25, -1.0]
    # Standardised over all tokens under an episode skill: -2, 1, 2, -1 have mean 0 and population variance 2.5.
    result = compute("opid", both, normalize_skill=True, lambda_step=0.0)
    expected = np.array([-2, 1, 0, 2, -1]) * 0.5 / (2.5**0.5 + 1e-6)
    np.testing.assert_allclose(result.skill, expected, rtol=1e-6)


def test_opid_can_have_a_step_advantage():
    result = compute("opid", BATCH, step_weight=2.0)
    assert result.step.tolist() == [9.5, 0.0, -9.5]
    assert total(BATCH, result).tolist() == [13.5, 15.0, 5, -14.25, -15.0]


@pytest.mark.parametrize(("iteration", "share"), [(1, 0.495), (50, 0.25), (100, 0.0), (131, 0.0)])
def test_rlsd_gives_tokens_more_or_less_of_the_credit(iteration, share):
    """x (A = 5): delta -2 and 1 are weights 0.8 and 1.2; y (A = -5): delta 1 and -2 are weights 0.8 and 1.2; x's second
    step has no skill. The weights count with a share that falls from a half to nothing."""
    batch = BATCH.with_columns(iteration=[iteration] * 3)
    result = compute("rlsd", batch)
    less, more = 1 - 0.2 * share, 1 + 0.2 * share
    expected = [5 * less, 5 * more, 5, -5 * less, -5 * more]
    np.testing.assert_allclose(total(batch, result), expected, rtol=1e-6)
    np.testing.assert_allclose(result.skill, np.subtract(expected, [5, 5, 5, -5, -5]), atol=1e-6)


def test_rlsd_does_not_clip_small_deltas():
    batch = BATCH.with_columns(skill_log_probs=log_probs([-0.9, -0.9], None, [-1.9, -1.9]))
    result = total(batch, compute("rlsd", batch))
    # exp(0.1) = 1.105171 for the winner, exp(-0.1) = 0.904837 for the loser, by the first iteration's 0.495
    np.testing.assert_allclose(result[:2], [5 * (1 + 0.495 * 0.105171)] * 2, rtol=1e-6)
    np.testing.assert_allclose(result[3:], [-5 * (1 - 0.495 * 0.095163)] * 2, rtol=1e-6)
    tied = BATCH.with_columns(score=np.zeros(3, np.float32))
    assert not total(tied, compute("rlsd", tied)).any()  # no credit to share


def test_shares_count_valid_tokens():
    # outcome 5 * 5 tokens, step 2 * 4.75 + 2 * 4.75, skill 1 + 0.5 + 0.25 + 0.5
    advantages = compute("opid", BATCH, step_weight=1.0)
    sizes = advantages.magnitudes(BATCH.response_ids.lengths)
    assert sizes == pytest.approx({"outcome": 25 / 5, "step": 19 / 5, "skill": 2.25 / 5})
    result = advantages.shares(BATCH.response_ids.lengths)
    assert result == pytest.approx({"outcome": 25 / 46.25, "step": 19 / 46.25, "skill": 2.25 / 46.25})
    nothing = BATCH.with_columns(score=np.zeros(3, np.float32), route=["none"] * 3)
    shares = compute("opid", nothing).shares(BATCH.response_ids.lengths)
    assert shares == {"outcome": 0.0, "step": 0.0, "skill": 0.0}


@pytest.mark.parametrize("name", ["opid", "grpo", "rloo"])
def test_tied_groups_are_decided_before_penalties(name):
    batch = BATCH.with_columns(score=np.array([0, -1, 0], np.float32), outcome=["failure"] * 3)
    assert compute(name, batch).outcome.any()
    assert not compute(name, batch, tied_groups="zero").outcome.any()


@pytest.mark.parametrize("name", ["opid", "rlsd"])
def test_an_unknown_route_is_refused(name):
    with pytest.raises(DataError, match="'both' is none of step"):
        compute(name, BATCH.with_columns(route=["both", "none", "none"]))


def test_what_the_other_stages_ask_a_method():
    every = {name: method(name) for name in methods.BUILT_IN}
    assert [name for name, one in every.items() if not one.uses_skills] == [
        "grpo",
        "gigpo",
        "rloo",
        "dapo",
        "skill_grpo",
    ]
    assert [name for name, one in every.items() if one.filters_ties] == ["dapo"]
    assert [name for name, one in every.items() if one.loss] == ["opsd", "grpo_opsd", "skill_sd", "sdar"]
    assert {name: one.further_draws for name, one in every.items() if one.further_draws} == {"dapo": 3}
    assert {name: one.bank_in_training for name, one in every.items() if one.bank_in_training} == {
        "skill_grpo": "bank.json"
    }
    taught = ["opsd", "grpo_opsd", "skill_sd", "rlsd", "sdar"]
    assert [name for name, one in every.items() if one.bank_of_teacher] == [*sorted(taught, key=[*every].index)]
    assert method("sdar").uses_kinds(0) == (True, False)  # the bank's skill in every step
    assert method("sdar", teacher="routed").bank_of_teacher is None
    assert method("sdar", teacher="routed").uses_kinds(0) == (True, True)
    opid = method("opid", lambda_episode=0.0)
    assert (opid.uses_kinds(0), opid.wants_skills(0)) == ((False, True), True)
    assert not method("opid", lambda_episode=0.0, lambda_step=0.0).wants_skills(0)  # the twin pays for none
    assert method("skill_grpo").bank_at_test is None
    assert method("skill_grpo", keep_skill_at_test=True).bank_at_test == "bank.json"


def test_the_papers_numbers_are_each_methods_defaults():
    def configured(name: str) -> dict:
        taught = {"teacher": "routed"} if "teacher" in methods.get(name).model_fields else {}
        return build_config({"campaign": "c", "method": {"name": name, **taught}}).method.model_dump()

    assert configured("gigpo")["step_weight"] == 1.0
    assert (configured("opid")["step_weight"], configured("opid")["lambda_step"]) == (0.0, 0.001)
    weights = {"opsd": (0.01, 5.0), "grpo_opsd": (0.01, 0.0), "sdar": (0.01, 5.0)}
    for name, expected in weights.items():
        assert (configured(name)["distillation_coefficient"], configured(name)["gate_beta"]) == expected
    assert configured("skill_sd")["distillation_coefficient"] == 0.001
    assert set(KEYS) <= set(configured("opid"))


PLACEBOS = {"placebo_episode": "swapped", "placebo_step": "random_action"}


@pytest.mark.parametrize(
    ("signal", "expected"),
    [
        ("skill", [0.5 * -2, 0.5 * 1, 0, 0.25 * 1, 0.25 * -2]),
        ("placebo", [0.5 * -1, 0.5 * -1, 0, 0.25 * 0, 0.25 * 1]),
        ("contrast", [0.5 * -1, 0.5 * 2, 0, 0.25 * 1, 0.25 * -3]),
    ],
)
def test_what_the_skill_is_held_against(signal, expected):
    assert compute("opid", BATCH, signal=signal, **PLACEBOS).skill.tolist() == expected
    if signal != "skill":  # a step whose skill has no placebo teaches nothing
        lacking = BATCH.with_columns(placebo_log_probs=log_probs([-2, -2], None, None))
        assert compute("opid", lacking, signal=signal, **PLACEBOS).skill.tolist() == [*expected[:2], 0, 0, 0]


def test_a_distillation_towards_the_placebo_is_given_its_log_probs():
    learned = method("sdar", signal="placebo", **PLACEBOS).taught(BATCH)
    assert learned.texts("skill_log_probs") == BATCH.texts("placebo_log_probs")
    assert method("sdar", **PLACEBOS).taught(BATCH) is BATCH
    # PPO's ratio is against the policy that sampled, whatever the skill is held against
    assert method("opid", signal="contrast", **PLACEBOS).taught(BATCH).texts("old_log_probs") == [
        [-1, -1],
        [-1],
        [-2, -2],
    ]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"signal": "contrast"}, "contrast needs placebo_episode"),
        ({"signal": "placebo", "placebo_episode": "fixed"}, "placebo needs placebo_step"),
        ({"name": "sdar", "teacher": "routed", "signal": "contrast", **PLACEBOS}, "not a loss"),
        ({"name": "rlsd"}, "needs skill_bank"),
        ({"name": "rlsd", "teacher": "routed", "skill_bank": "b.json"}, "reads none"),
        ({"name": "rlsd", "skill_bank": "b.json", "routing": "step_only"}, "the bank's skill is the episode's"),
        ({"routing": "additive", "placebo_step": "fixed"}, "no placebo"),
        ({"lambda_schedule": "linear"}, "need it"),
        ({"lambda_iterations": 3}, "goes without"),
        ({"name": "grpo", "placebo_step": "fixed"}, "grpo does not read this key; its keys: name, "),
        ({"lamda_step": 0.1}, r"step: the method opid does not read this key; did you mean 'lambda_step'\?"),
    ],
)
def test_combinations_that_mean_nothing_are_refused(keys, message):
    with pytest.raises(ConfigError, match=message):
        build_config({"campaign": "c", "method": keys})


def test_only_what_is_routed_needs_a_placebo():
    for routing, placebo in (
        ("step_only", {"placebo_step": "fixed"}),
        ("episode_only", {"placebo_episode": "swapped"}),
    ):
        build_config({"campaign": "c", "method": {"routing": routing, "signal": "contrast", **placebo}})
    off = {"lambda_episode": 0.0, "signal": "placebo", "placebo_step": "random_action"}
    build_config({"campaign": "c", "method": off})


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        ("linear", [1, 0.75, 0.5, 0.25, 0, 0]),
        ("cosine", [1, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2, 0, 0]),  # cos 45 degrees is 0.5 ** 0.5
        ("stop", [1, 1, 1, 1, 0, 0]),
    ],
)
def test_lambdas_fall_by_their_schedule(schedule, factors):
    falling = method("opid", lambda_schedule=schedule, lambda_iterations=4)
    assert [falling.lambda_factor(completed) for completed in range(6)] == pytest.approx(factors, abs=1e-15)
    whole = compute("opid", BATCH).skill
    for completed, factor in enumerate(factors):
        at = BATCH.with_columns(iteration=[completed + 1] * 3)
        given = compute("opid", at, lambda_schedule=schedule, lambda_iterations=4).skill
        np.testing.assert_allclose(given, factor * whole, rtol=1e-6)
        assert factor or not given.any()
