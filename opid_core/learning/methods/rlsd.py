"""RLSD: the skill says how much of the outcome's credit each token gets, never its sign."""

from __future__ import annotations

import numpy as np

from opid_core.config import MethodConfig
from opid_core.learning.methods import Advantages, Method, combined, outcome_component, route_array, skill_deltas
from opid_core.samples import Samples

SHARE = 0.5
"""a at the first iteration; it falls linearly to 0."""
ANNEALED_ITERATIONS = 100
LOWEST, HIGHEST = 0.8, 1.2
"""Bounds of a token's weight."""


def advantages(samples: Samples, config: MethodConfig) -> Advantages:
    """A * [(1 - a) + a * clip(exp(sign(A) * delta), 0.8, 1.2)], A = A_ep; A where no skill is routed.

    `skill` is what this adds to A. Source: ALGORITHM, section 8.
    """
    outcome = outcome_component(samples, config)
    share = SHARE * max(0.0, 1 - samples.completed_iterations / ANNEALED_ITERATIONS)
    credit = samples.per_token(outcome).astype(np.float64)
    routed = route_array(samples) != "none"
    exponents = np.sign(credit) * skill_deltas(samples, routed, samples.on_tokens("skill_log_probs"))
    weights = np.exp(np.clip(exponents, np.log(LOWEST), np.log(HIGHEST)))
    return combined(samples, outcome, skill=(share * credit * (weights - 1)).astype(np.float32))


METHOD = Method(advantages, uses_skills=True)
