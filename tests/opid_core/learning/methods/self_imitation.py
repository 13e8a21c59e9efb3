"""GRPO that forgives failures and imitates what won: a method in one file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from opid_core.learning.methods import Advantages, OutcomeMethod

if TYPE_CHECKING:
    from torch import Tensor

    from opid_core.learning.losses import LossInput
    from opid_core.samples import Samples


class SelfImitation(OutcomeMethod):
    """A_ep, of which a part counts where it is negative; and -log pi of the responses that were better than their
    group."""

    failure_weight: float = Field(default=0.5, ge=0, le=1)
    """Weight of negative advantages."""
    imitation_coefficient: float = Field(default=0.01, ge=0)
    """Weight of the imitation loss."""

    def advantages(self, samples: Samples) -> Advantages:
        outcome = self.outcome(samples)
        return Advantages.of(samples, outcome=np.where(outcome < 0, self.failure_weight * outcome, outcome))

    def loss(self, inputs: LossInput) -> tuple[Tensor, dict[str, Tensor]]:
        imitation = inputs.aggregate((-inputs.log_probs).where(inputs.advantages > 0, 0.0))
        return self.imitation_coefficient * imitation, {"imitation_loss": imitation.detach()}
