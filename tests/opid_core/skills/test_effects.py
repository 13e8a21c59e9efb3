from __future__ import annotations

from opid_core.skills.effects import SkillEffect, skill_effects
from tests.factories import make_table

PLAN, DO = "Plan: take mug.", "Do now: take mug 1"


def _iteration(step_delta: float) -> dict:
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
        keys[0] | old | {"skill_log_probs": [-0.5, -0.5], "skill_advantages": [0.5, 0.0]},  # raised by 0.5
        keys[1] | old | {"skill_log_probs": [-2.0, -0.5], "skill_advantages": [-1.0, 0.0], "trained": False},
        keys[2] | old | {"skill_log_probs": [-1.0 + step_delta, -0.25], "skill_advantages": [step_delta, 0.25]},
        keys[3] | old,
    ]
    tables = {"skills": skills, "routes": routes, "scores": scores}
    return {name: make_table(name, rows) for name, rows in tables.items()}


def test_a_skills_effect_is_summed_over_all_steps_with_its_kind_and_text():
    # Do now: deltas -4 + 0.25 and 2 + 0.25, advantages 4 + 0.25 and 2 + 0.25
    # Plan: deltas 0.5 and -1 twice; only that of 0.5 was trained on
    assert skill_effects([_iteration(-4.0), _iteration(2.0)]) == [
        SkillEffect("step", DO, steps=2, raised=1, delta=-0.75, advantage=6.5),
        SkillEffect("episode", PLAN, steps=4, raised=2, delta=-0.25, advantage=1.0),
    ]


def test_without_scores_under_skills_there_is_no_effect():
    assert skill_effects([]) == []
