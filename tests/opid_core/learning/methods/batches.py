"""Batches for the tests of the methods."""

from __future__ import annotations

from typing import Any

import numpy as np

from opid_core.config import MethodConfig, build_config
from opid_core.learning import methods

BATCH = methods.Batch(
    iteration=0,
    scores=np.array([10, 10, 0], dtype=np.float32),
    outcomes=np.array([10, 10, 0], dtype=np.float32),
    returns=np.array([9.5, 10, 0], dtype=np.float32),
    states=["s", "t", "s"],
    group_ids=["g", "g", "g"],
    trajectory_ids=["x", "x", "y"],
    response_mask=np.array([[1, 1], [1, 0], [1, 1]], dtype=bool),
    old_log_probs=np.array([[-1, -1], [-1, np.nan], [-2, -2]], dtype=np.float32),
    skill_log_probs=np.array([[-3, 0], [0, np.nan], [-1, -4]], dtype=np.float32),
    added_log_probs=np.full((3, 2), np.nan, dtype=np.float32),
    routes=["episode", "none", "step"],
    added=np.zeros(3, dtype=bool),
)
"""One group: x won in two steps, y lost in one. Over one value a trajectory the scores' mean is 5. The skill's delta
is -2, 1 on x's first response and 1, -2 on y's."""
CONFIG = MethodConfig(baseline="trajectory", normalize="mean", lambda_episode=0.5, lambda_step=0.25)


def compute(name: str, batch: methods.Batch, config: MethodConfig) -> methods.Advantages:
    return methods.get(name).advantages(batch, config)


def configured(name: str, **method: Any) -> MethodConfig:
    """The section `method` of a campaign's config for a method, with what the method itself sets."""
    bank = {"skill_bank": "bank.json"} if name == "skill_grpo" else {}
    return build_config({"campaign": "c", "method": {"name": name, **bank, **method}}).method


def random_batch(seed: int, n_samples: int, n_tokens: int) -> methods.Batch:
    generator = np.random.default_rng(seed)
    old, skill, added = generator.normal(size=(3, n_samples, n_tokens)).astype(np.float32)
    routes = generator.choice(["step", "episode", "none"], n_samples).tolist()
    trajectories = generator.integers(0, 4, n_samples)
    groups = trajectories % 2
    return methods.Batch(
        iteration=int(generator.integers(0, 120)),
        scores=generator.normal(size=n_samples).astype(np.float32),
        outcomes=generator.integers(0, 2, 4).astype(np.float32)[trajectories],
        returns=generator.normal(size=n_samples).astype(np.float32),
        states=[str(i) for i in generator.integers(0, 3, n_samples)],
        group_ids=[str(i) for i in groups],
        trajectory_ids=[str(i) for i in trajectories],
        response_mask=generator.random((n_samples, n_tokens)) < 0.8,
        old_log_probs=old,
        skill_log_probs=skill,
        added_log_probs=added,
        routes=routes,
        added=np.array([route == "step" for route in routes]) & (generator.random(n_samples) < 0.5),
    )
