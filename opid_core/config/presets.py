"""Numbers in which the paper's text and its released code differ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    "released": {
        "environment": {"success_reward": 10.0, "invalid_action_penalty": 0.1},
        "method": {"baseline": "step", "normalize": "mean_std"},
    },
    "paper": {
        "environment": {"success_reward": 1.0, "invalid_action_penalty": 0.0},
        "method": {"baseline": "trajectory", "normalize": "mean_population_std"},
    },
}
PRESETS_BY_ENVIRONMENT: dict[tuple[str, Any], dict[str, Any]] = {
    ("released", "webshop"): {"method": {"normalize": "mean"}},
    ("released", "search_qa"): {
        "environment": {"success_reward": 1.0, "invalid_action_penalty": 0.01},
        "learner": {"kl_coefficient": 0.001, "warmup_iterations": 15},  # a tenth of the 150
    },
}
"""What a preset sets otherwise for one environment."""
HELD_OUT = {"webshop": "validation", "scienceworld": "dev"}
"""The default of `evaluation.split` where the environment's held-out split is not called `valid_unseen`."""


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged
