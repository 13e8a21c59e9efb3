"""GiGPO: the outcome advantage plus the step advantage among visits of the same state."""

from __future__ import annotations

from opid_core.config import MethodConfig
from opid_core.learning.methods import Advantages, Method, combined, outcome_component, step_component
from opid_core.samples import Samples


def advantages(samples: Samples, config: MethodConfig) -> Advantages:
    """A_ep + w * A_step, w = `method.step_weight`, on every response token. Source: ALGORITHM, sections 2 and 8."""
    return combined(samples, outcome_component(samples, config), step=step_component(samples, config))


METHOD = Method(advantages)
