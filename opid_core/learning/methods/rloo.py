"""RLOO: each trajectory against the mean of the others of its group."""

from __future__ import annotations

from opid_core.config import MethodConfig
from opid_core.learning.advantages import leave_one_out_advantages
from opid_core.learning.methods import Advantages, Method, combined
from opid_core.samples import Samples


def advantages(samples: Samples, config: MethodConfig) -> Advantages:
    """S - mean over the group's other trajectories, on every response token; `method.baseline` and `method.normalize`
    have no say. Source: ALGORITHM, section 8."""
    found = leave_one_out_advantages(
        samples.numbers("score"),
        samples.group_ids,
        samples.trajectory_ids,
        tied_groups=config.tied_groups,
        outcomes=samples.won,
    )
    return combined(samples, found)


METHOD = Method(advantages)
