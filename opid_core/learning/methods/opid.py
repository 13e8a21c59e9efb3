"""OPID: the outcome advantage plus the routed skill advantages."""

from __future__ import annotations

import numpy as np

from opid_core.config import MethodConfig
from opid_core.learning.methods import (
    Advantages,
    Method,
    combined,
    outcome_component,
    route_array,
    skill_deltas,
    step_component,
)
from opid_core.samples import Samples


def advantages(samples: Samples, config: MethodConfig) -> Advantages:
    """A_ep + w * A_step + lambda_ep * delta_ep + lambda_step * delta_step; normalising and clipping see each kind's
    tokens apart.

    Raises DataError for an unknown route. Source: ALGORITHM, sections 5 and 6.
    """
    outcome = outcome_component(samples, config)
    step = step_component(samples, config) if config.step_weight else None
    routes, added = route_array(samples), samples.has("added_log_probs")
    under_routed = samples.on_tokens("skill_log_probs")
    under_episode = np.where(samples.per_token(added), samples.on_tokens("added_log_probs"), under_routed)
    skill = None
    for weight, routed, log_probs in (
        (config.lambda_episode, (routes == "episode") | added, under_episode),
        (config.lambda_step, routes == "step", under_routed),
    ):
        if weight == 0 or not routed.any():
            continue
        delta = skill_deltas(samples, routed, log_probs, normalize=config.normalize_skill, clip=config.clip_skill)
        weighted = (weight * delta).astype(np.float32)
        skill = weighted if skill is None else skill + weighted
    return combined(samples, outcome, step=step, skill=skill)


METHOD = Method(advantages, uses_skills=True)
