from __future__ import annotations

import math

import numpy as np

from benchmarks.skill_signal import SignalQuality, auc_interval, expert_agrees, signal_quality
from envs.base import make, result_of
from opid_core.warm_start import require_expert
from tests.opid_core.skills.episodes import episode


def test_signal_quality_by_hand():
    delta = np.array([1.0, -1.0, 0.5, 0.5, -2.0])
    is_experts = np.array([True, True, True, False, False])
    # pairs (expert's, other): 1 > 0.5, 1 > -2, -1 < 0.5, -1 > -2, 0.5 = 0.5, 0.5 > -2: 4.5 of 6
    assert signal_quality(delta, is_experts) == SignalQuality(3, 2, 2 / 3, 1 / 2, 4.5 / 6)


def test_the_interval_of_the_order_is_over_groups():
    delta, is_experts = np.array([1.0, -1.0, 0.5, 0.5, -2.0]), np.array([True, True, True, False, False])
    # one group is drawn in every draw: always all pairs, 4.5 of 6
    assert auc_interval(delta, is_experts, ["g"] * 5) == (4.5 / 6, 4.5 / 6)
    # g: 1 > 0.5 and -1 < 0.5: 1 of 2; h: 0.5 > -2: 1 of 1; more than 2.5% of the draws have one of them alone
    assert auc_interval(delta, is_experts, ["g", "g", "h", "g", "h"]) == (0.5, 1.0)
    assert np.isnan(auc_interval(delta, np.ones(5, bool), ["g"] * 5)).all()


def test_no_steps_of_one_kind_leave_nothing_to_compare():
    quality = signal_quality(np.array([1.0]), np.array([True]))
    assert (quality.expert_steps, quality.other_steps, quality.expert_raised) == (1, 0, 1.0)
    assert math.isnan(quality.other_raised)
    assert math.isnan(quality.auc)


def test_the_expert_agrees_with_itself_and_not_with_looking_around():
    environment = make("alfworld", {"generator": {"size": "small", "train": 3}})
    task = environment.tasks("train")[1]
    seen = [result_of(environment.reset(task))]
    expert, actions, offered = require_expert(environment).expert(seen[0]), [], []
    for _ in range(4):
        offered.append(list(environment.admissible_actions))
        actions.append(expert.decide(offered[-1]).action)
        seen.append(result_of(environment.step(actions[-1])).observation)
        expert.observe(actions[-1], seen[-1])
    observations = dict(enumerate(seen))
    played = episode("x", actions, observations=observations, offered=offered)
    assert expert_agrees(environment, task, played) == [True] * 4
    actions[2] = "look"
    looked = episode("x", actions, observations=observations, offered=offered)
    assert (expert_agrees(environment, task, looked) or [])[2] is False
