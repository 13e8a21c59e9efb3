"""RLOO: each trajectory against the mean of the others of its group."""

from __future__ import annotations

from opid_core.config import MethodConfig
from opid_core.learning.advantages import leave_one_out_advantages
from opid_core.learning.methods import Advantages, Batch, Method, combined


def advantages(batch: Batch, config: MethodConfig) -> Advantages:
    """S - mean over the group's other trajectories, on every response token; `method.baseline` and `method.normalize`
    have no say. Source: ALGORITHM, section 8."""
    found = leave_one_out_advantages(
        batch.scores,
        batch.group_ids,
        batch.trajectory_ids,
        tied_groups=config.tied_groups,
        outcomes=batch.outcomes,
    )
    return combined(batch, found)


METHOD = Method(advantages)
