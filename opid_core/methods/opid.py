"""OPID: the outcome advantage plus the routed skill advantages."""

from __future__ import annotations

import numpy as np

from opid_core.advantages import skill_advantages
from opid_core.config import MethodConfig
from opid_core.errors import DataError
from opid_core.methods import Advantages, Batch, on_tokens, outcome_component


def advantages(batch: Batch, config: MethodConfig) -> Advantages:
    """A_ep + lambda_ep * delta_ep + lambda_step * delta_step; normalising and clipping see each kind's tokens apart.

    Raises DataError for an unknown route. Source: ALGORITHM, sections 5 and 6.
    """
    outcome = outcome_component(batch, config)
    total = on_tokens(outcome, batch.response_mask)
    routes = np.asarray(batch.routes, dtype=str)
    if unknown := set(routes.tolist()) - {"step", "episode", "none"}:
        raise DataError(f"routes: {sorted(unknown)[0]!r} is none of step, episode, none")
    skill = np.zeros_like(total)
    for kind, weight in (("episode", config.lambda_episode), ("step", config.lambda_step)):
        routed = routes == kind
        if weight == 0 or not routed.any():
            continue
        delta = skill_advantages(
            batch.skill_log_probs,
            batch.old_log_probs,
            batch.response_mask,
            routed,
            normalize=config.normalize_skill,
            clip=config.clip_skill,
        )
        skill += (weight * delta).astype(skill.dtype)
    return Advantages(outcome=outcome, skill=skill, total=total + skill)
