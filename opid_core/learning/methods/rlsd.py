"""RLSD: the skill says how much of the outcome's credit each token gets, never its sign."""

from __future__ import annotations

import numpy as np

from opid_core.config import MethodConfig
from opid_core.learning.methods import Advantages, Batch, Method, combined, outcome_component, skill_deltas

SHARE = 0.5
"""a at the first iteration; it falls linearly to 0."""
ANNEALED_ITERATIONS = 100
LOWEST, HIGHEST = 0.8, 1.2
"""Bounds of a token's weight."""


def advantages(batch: Batch, config: MethodConfig) -> Advantages:
    """A * [(1 - a) + a * clip(exp(sign(A) * delta), 0.8, 1.2)], A = A_ep; A where no skill is routed.

    `skill` is what this adds to A. Source: ALGORITHM, section 8.
    """
    outcome = outcome_component(batch, config)
    share = SHARE * max(0.0, 1 - batch.iteration / ANNEALED_ITERATIONS)
    credit = outcome[:, None].astype(np.float64)
    exponents = np.sign(credit) * skill_deltas(batch)
    weights = np.exp(np.clip(exponents, np.log(LOWEST), np.log(HIGHEST)))
    skill = np.where(batch.response_mask, share * credit * (weights - 1), 0).astype(outcome.dtype)
    return combined(batch, outcome, skill=skill)


METHOD = Method(advantages, uses_skills=True)
