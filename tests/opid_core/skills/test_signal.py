from __future__ import annotations

import math

import numpy as np

from envs.base import make, validate_options
from opid_core.skills.signal import Favour, by_route, expert_agrees, favour
from opid_core.warm_start import require_expert


def test_favour_by_hand():
    delta = np.array([1.0, -1.0, 0.5, 0.5, -2.0])
    as_expert = np.array([True, True, True, False, False])
    # pairs (expert's, other): 1 > 0.5, 1 > -2, -1 < 0.5, -1 > -2, 0.5 = 0.5, 0.5 > -2: 4.5 of 6
    assert favour(delta, as_expert) == Favour(3, 2, 2 / 3, 1 / 2, 4.5 / 6)


def test_no_steps_of_one_kind_leave_nothing_to_order():
    found = favour(np.array([1.0]), np.array([True]))
    assert (found.as_expert, found.otherwise, found.favoured_as_expert) == (1, 0, 1.0)
    assert math.isnan(found.favoured_otherwise)
    assert math.isnan(found.ordered)


def test_routes_are_told_apart():
    found = by_route([("step", 1.0, True), ("episode", 1.0, False), ("step", 2.0, False)])
    assert list(found) == ["episode", "step"]
    assert found["step"].ordered == 0.0


def test_the_expert_agrees_with_itself_and_not_with_looking_around():
    environment = make("alfworld", validate_options("alfworld", {"generator": {"size": "small", "train": 3}}))
    task = environment.tasks("train")[1]
    observation = environment.reset(task)
    expert, steps = require_expert(environment).expert(observation), []
    for _ in range(4):
        offered = environment.admissible_actions
        action = expert.decide(offered).action
        steps.append({"observation": observation, "admissible_actions": offered, "action": action})
        observation = environment.step(action).observation
        expert.observe(action, observation)
    assert expert_agrees(environment, task, steps) == [True] * 4
    steps[2]["action"] = "look"
    assert (expert_agrees(environment, task, steps) or [])[2] is False
