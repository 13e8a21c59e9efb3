"""SDAR: the outcome advantage, and distillation gated by how much the skill favours the sampled token."""

from __future__ import annotations

from opid_core.learning.methods import Method
from opid_core.learning.methods.grpo import advantages
from opid_core.learning.methods.opsd import distillation

METHOD = Method(advantages, uses_skills=True, distillation=distillation)
"""A_ep, and 0.01 * stop_gradient(sigmoid(5 * delta)) * d, d = log pi_T - log pi. Source: ALGORITHM, section 8."""
