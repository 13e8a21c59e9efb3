"""Tables that pass every gate, as rows: what the tests of the gates break."""

from __future__ import annotations

from typing import Any

from opid_core.config import GatesConfig

Rows = dict[str, list[dict[str, Any]]]


def valid() -> Rows:
    """Two trajectories of one group: `a` won in two steps, `b` failed in one and its analysis too."""
    steps = [("a", 0, [3, 4]), ("a", 1, [5]), ("b", 0, [3, 6, 7])]
    routes = [
        ("a", 0, "step", "a/0", "a/episode"),
        ("a", 1, "episode", "a/episode", None),
        ("b", 0, "none", None, None),
    ]
    skills = [
        ("a/episode", "episode", None, "Find the mug first, look at every shelf in turn, then go to a desk with it."),
        ("a/0", "step", 0, "Open the drawer."),
        ("b/failed", "failed", None, ""),
    ]
    return {
        "steps": [
            {
                "campaign": "demo",
                "iteration": 2,
                "group_id": "g",
                "trajectory_id": trajectory_id,
                "step": step,
                "task_id": "t",
                "task_type": "pick",
                "task_text": "put a mug on a desk",
                "observation": "You see a mug 1.",
                "admissible_actions": ["look"],
                "prompt_text": "Your task: put a mug on a desk",
                "prompt_ids": [1, 2],
                "history_dropped": 0,
                "response_text": "",
                "response_ids": response_ids,
                "rollout_log_probs": [-0.5] * len(response_ids),
                "action": "look",
                "is_valid": True,
                "reward": 0.0,
                "done": False,
                "truncated": False,
                "policy_version": 2,
                "seed": 7,
            }
            for trajectory_id, step, response_ids in steps
        ],
        "trajectories": [
            {
                "campaign": "demo",
                "iteration": 2,
                "group_id": "g",
                "trajectory_id": trajectory_id,
                "task_id": "t",
                "task_type": "pick",
                "outcome": outcome,
                "return": 10.0 if outcome == "success" else 0.0,
                "steps": steps,
                "tokens": 3,
                "seconds": 0.5,
                "error": None,
            }
            for trajectory_id, outcome, steps in [("a", "success", 2), ("b", "failure", 1)]
        ],
        "skills": [
            {
                "skill_id": skill_id,
                "trajectory_id": skill_id[0],
                "kind": kind,
                "step": step,
                "text": text,
                "outcome": "success",
                "analyzer": "hindsight",
                "model": None,
                "prompt_hash": None,
                "attempts": 1,
                "tokens": None,
                "prompt_tokens": None,
                "completion_tokens": None,
                "cost": None,
                "seconds": None,
                "cut": None,
                "error": "no reply" if kind == "failed" else None,
                "raw_reply": None,
            }
            for skill_id, kind, step, text in skills
        ],
        "routes": [
            {
                "trajectory_id": trajectory_id,
                "step": step,
                "route": route,
                "skill_id": skill_id,
                "added_skill_id": added_skill_id,
                "reason": "as planned",
            }
            for trajectory_id, step, route, skill_id, added_skill_id in routes
        ],
        "scores": [
            {
                "trajectory_id": trajectory_id,
                "step": step,
                "old_log_probs": [-0.5] * len(ids),
                "skill_log_probs": None if trajectory_id == "b" else [-0.25] * len(ids),
                "added_log_probs": [-0.125] * len(ids) if (trajectory_id, step) == ("a", 0) else None,
                "reference_log_probs": [-0.75] * len(ids),
                "skill_prompt_ids": None if trajectory_id == "b" else [1, 9, 2],
                "history_dropped": 0,
                "outcome_advantage": 1.0,
                "step_advantage": 0.0,
                "skill_advantages": [0.0 if trajectory_id == "b" else 0.25] * len(ids),
                "trained": True,
            }
            for trajectory_id, step, ids in steps
        ],
        "metrics": [
            {"iteration": 2, "name": "rollout/return", "value": 5.0},
            {"iteration": 2, "name": "undefined", "value": None},
            {"iteration": 2, "name": "rollout/success_micro", "value": 0.5},
        ],
        "evaluations": [
            {
                "policy_version": 3,
                "temperature": temperature,
                "repetition": 0,
                "task_id": task_id,
                "task_type": "pick",
                "outcome": "success",
                "return": 10.0,
                "steps": 4,
                "valid_actions": 4,
                "admissible_actions": 3,
                "tokens": 40,
                "seed": 5,
            }
            for temperature in (0.5, 1.0)
            for task_id in ("t", "u")
        ],
    }


SETTINGS = GatesConfig(
    max_duplicate_skills=0.4,
    max_near_duplicate_skills=0.4,
    max_copied_words=6,
    max_leaking_skills=0.5,
    min_coverage_trajectories=2,
)
HISTORY = [{"rollout/success_micro": value} for value in (0.5, 0.4, 0.5, 0.6, 0.5)]
"""Mean 0.5, standard deviation sqrt(0.02 / 4) = 0.0707."""
LIMITS: dict[str, dict[str, Any]] = {
    "steps": {"iteration": 2, "policy_version": 2, "max_prompt_tokens": 2, "max_response_tokens": 3},
    "trajectories": {"iteration": 2, "group_size": 2},
    "skills": {
        "max_failure_rate": 0.5,
        "analyzed": ["a", "b"],
        "settings": SETTINGS,
        "forbidden": {"t": ["Old Paris"]},
    },
    "routes": {},
    "scores": {},
    "metrics": {"iteration": 2, "required_metrics": ["rollout/return"], "history": HISTORY},
    "evaluations": {"policy_version": 3, "panel_size": 2},
}
