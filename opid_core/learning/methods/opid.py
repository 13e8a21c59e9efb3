"""OPID: the outcome advantage plus the routed skill advantages."""

from __future__ import annotations

import numpy as np

from opid_core.config import MethodConfig
from opid_core.learning.advantages import skill_advantages
from opid_core.learning.methods import (
    Advantages,
    Batch,
    Method,
    combined,
    outcome_component,
    route_array,
    step_component,
)


def advantages(batch: Batch, config: MethodConfig) -> Advantages:
    """A_ep + w * A_step + lambda_ep * delta_ep + lambda_step * delta_step; normalising and clipping see each kind's
    tokens apart.

    Raises DataError for an unknown route. Source: ALGORITHM, sections 5 and 6.
    """
    outcome = outcome_component(batch, config)
    step = step_component(batch, config) if config.step_weight else None
    routes = route_array(batch)
    skill = None
    under_episode_skill = np.where(batch.added[:, None], batch.added_log_probs, batch.skill_log_probs)
    for weight, routed, log_probs in (
        (config.lambda_episode, (routes == "episode") | batch.added, under_episode_skill),
        (config.lambda_step, routes == "step", batch.skill_log_probs),
    ):
        if weight == 0 or not routed.any():
            continue
        delta = skill_advantages(
            log_probs,
            batch.old_log_probs,
            batch.response_mask,
            routed,
            normalize=config.normalize_skill,
            clip=config.clip_skill,
        )
        weighted = (weight * delta).astype(outcome.dtype)
        skill = weighted if skill is None else skill + weighted
    return combined(batch, outcome, step=step, skill=skill)


METHOD = Method(advantages, uses_skills=True)
