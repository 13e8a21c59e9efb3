"""Skill-SD: the outcome advantage, and an importance-weighted reverse KL to the policy under its skill."""

from __future__ import annotations

from opid_core.config import MethodConfig
from opid_core.learning.methods import Distillation, Method
from opid_core.learning.methods.grpo import advantages


def distillation(config: MethodConfig) -> Distillation:
    """0.001 * ratio * k3, k3 = exp(-l) - 1 + l, l = log pi - log pi_T, ratio = pi / pi_old.
    Source: ALGORITHM, section 8."""
    return Distillation("ratio_k3", config.distillation_coefficient)


METHOD = Method(advantages, uses_skills=True, distillation=distillation)
