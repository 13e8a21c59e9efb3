"""GRPO + OPSD: the outcome advantage, and distillation with a constant gate (`method.gate_beta` 0)."""

from __future__ import annotations

from opid_core.learning.methods import Method
from opid_core.learning.methods.grpo import advantages
from opid_core.learning.methods.opsd import distillation

METHOD = Method(advantages, uses_skills=True, distillation=distillation)
"""A_ep, and 0.01 * 0.5 * d, d = log pi_T - log pi. Source: ALGORITHM, section 8."""
