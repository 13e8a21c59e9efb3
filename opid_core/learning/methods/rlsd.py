"""RLSD: the skill says how much of the outcome's credit each token gets, never its sign."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from opid_core.learning.advantages import skill_deltas
from opid_core.learning.methods.base import Advantages, OutcomeMethod, TaughtMethod, routes

if TYPE_CHECKING:
    from opid_core.samples import Samples

SHARE = 0.5
"""a before the first iteration, which is number 1; it falls linearly to 0 in number `ANNEALED_ITERATIONS`."""
ANNEALED_ITERATIONS = 100
LOWEST, HIGHEST = 0.8, 1.2
"""Bounds of a token's weight."""


class Rlsd(OutcomeMethod, TaughtMethod):
    """A * [(1 - a) + a * clip(exp(sign(A) * delta), 0.8, 1.2)], A = A_ep; A where no skill is routed."""

    name: Literal["rlsd"] = "rlsd"

    def advantages(self, samples: Samples) -> Advantages:
        """A_ep, and as `skill` what the weights add to it. Source: ALGORITHM, section 8."""
        outcome = self.outcome(samples)
        share = SHARE * max(0.0, 1 - (samples.completed_iterations + 1) / ANNEALED_ITERATIONS)
        credit = samples.per_token(outcome).astype(np.float64)
        delta = skill_deltas(
            samples.on_tokens("skill_log_probs"),
            samples.on_tokens("old_log_probs"),
            samples.per_token(routes(samples) != "none"),
        )
        weights = np.exp(np.clip(np.sign(credit) * delta, np.log(LOWEST), np.log(HIGHEST)))
        return Advantages.of(samples, outcome=outcome, skill=share * credit * (weights - 1))
