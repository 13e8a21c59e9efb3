"""OPSD: on-policy self-distillation alone, towards the policy under its own skill."""

from __future__ import annotations

import numpy as np

from opid_core.config import MethodConfig
from opid_core.learning.methods import Advantages, Distillation, Method, combined
from opid_core.samples import Samples


def advantages(samples: Samples, config: MethodConfig) -> Advantages:
    """0 everywhere: there is no policy-gradient term. Source: ALGORITHM, section 8."""
    return combined(samples, np.zeros(len(samples), np.float32))


def distillation(config: MethodConfig) -> Distillation:
    """0.01 * stop_gradient(sigmoid(5 * delta)) * d, d = log pi_T - log pi. Source: ALGORITHM, section 8."""
    return Distillation("gated", config.distillation_coefficient, config.gate_beta)


METHOD = Method(advantages, uses_skills=True, distillation=distillation)
