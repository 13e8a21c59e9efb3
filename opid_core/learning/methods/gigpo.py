"""GiGPO: the outcome advantage plus the step advantage among visits of the same state."""

from __future__ import annotations

from opid_core.config import MethodConfig
from opid_core.learning.methods import Advantages, Batch, Method, combined, outcome_component, step_component


def advantages(batch: Batch, config: MethodConfig) -> Advantages:
    """A_ep + w * A_step, w = `method.step_weight`, on every response token. Source: ALGORITHM, sections 2 and 8."""
    return combined(batch, outcome_component(batch, config), step=step_component(batch, config))


METHOD = Method(advantages)
