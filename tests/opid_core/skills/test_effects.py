from __future__ import annotations

from opid_core.skills.effects import SkillEffect, skill_effects
from tests.factories import make_table

PLAN, DO = "Plan: take mug.", "Do now: take mug 1"


def _iteration(number: int, step_delta: float) -> tuple[int, dict]:
    """Two trajectories of one step under the same plan, `a` and `b`, and one under a step skill, `c`; `d` has none."""
    keys = [{"trajectory_id": name, "step": 0} for name in "abcd"]
    skills = [
        {"skill_id": "a/e", "trajectory_id": "a", "text": PLAN},
        {"skill_id": "b/e", "trajectory_id": "b", "text": PLAN},
        {"skill_id": "c/0", "trajectory_id": "c", "kind": "step", "step": 0, "text": DO},
    ]
    routes = [
        keys[0] | {"route": "episode", "skill_id": "a/e"},
        keys[1] | {"route": "episode", "skill_id": "b/e"},
        keys[2] | {"route": "step", "skill_id": "c/0"},
        keys[3] | {"route": "none"},
    ]
    old = {"old_log_probs": [-1.0, -0.5]}
    scores = [
        keys[0]  # raised by 0.5, and by its placebo by 0.125
        | old
        | {"skill_log_probs": [-0.5, -0.5], "skill_advantages": [0.5, 0.0], "placebo_log_probs": [-1.0, -0.375]},
        keys[1] | old | {"skill_log_probs": [-2.0, -0.5], "skill_advantages": [-1.0, 0.0], "trained": False},
        keys[2] | old | {"skill_log_probs": [-1.0 + step_delta, -0.25], "skill_advantages": [step_delta, 0.25]},
        keys[3] | old,
    ]
    outcomes = {"a": "failure", "b": "success", "c": "success", "d": "success"}
    trajectories = [{"trajectory_id": name, "outcome": outcome} for name, outcome in outcomes.items()]
    tables = {"skills": skills, "routes": routes, "scores": scores, "trajectories": trajectories}
    return number, {name: make_table(name, rows) for name, rows in tables.items()}


def test_a_skills_effect_is_summed_over_all_steps_with_its_kind_and_text():
    # all responses have two tokens; Do now: deltas -4 + 0.25 and 2 + 0.25, advantages 4 + 0.25 and 2 + 0.25
    # Plan: deltas 0.5 and -1 twice; only that of 0.5 was trained on
    # of the plan's steps `a` alone has a placebo
    # c won each time, of the plan's episodes b alone, whose response became less likely
    effects = skill_effects([_iteration(3, -4.0), _iteration(5, 2.0)])
    did = {
        "steps": 2,
        "raised": 1,
        "raised_won": 1,
        "other_won": 1,
        "delta": -0.75,
        "delta_per_token": -0.375,
        "placebo_delta": None,
        "advantage": 6.5,
    }
    planned = {
        "steps": 4,
        "raised": 2,
        "raised_won": 0,
        "other_won": 2,
        "delta": -0.25,
        "delta_per_token": -0.125,
        "placebo_delta": 0.125,
        "advantage": 1.0,
    }
    assert effects == [
        SkillEffect("step", DO, **did, first=3, last=5),
        SkillEffect("episode", PLAN, **planned, first=3, last=5),
    ]
    assert (effects[1].won_if_raised, effects[1].won_if_not) == (0.0, 1.0)


def test_of_no_steps_no_share_is_known():
    effects = skill_effects([_iteration(1, 2.0)])
    assert (effects[0].won_if_raised, effects[0].won_if_not) == (1.0, None)


def test_without_scores_under_skills_there_is_no_effect():
    assert skill_effects([]) == []
