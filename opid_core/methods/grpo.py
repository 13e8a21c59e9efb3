"""GRPO: the outcome advantage alone."""

from __future__ import annotations

import numpy as np

from opid_core.config import MethodConfig
from opid_core.methods import Advantages, Batch, on_tokens, outcome_component


def advantages(batch: Batch, config: MethodConfig) -> Advantages:
    """A_ep on every response token. Source: ALGORITHM, sections 2 and 8."""
    outcome = outcome_component(batch, config)
    total = on_tokens(outcome, batch.response_mask)
    return Advantages(outcome=outcome, skill=np.zeros_like(total), total=total)
