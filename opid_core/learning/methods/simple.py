"""Methods that are one expression (ALGORITHM, section 8), each a class with the keys that it reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from opid_core.learning.advantages import leave_one_out_advantages
from opid_core.learning.methods.base import (
    Advantages,
    DistillingMethod,
    Method,
    OutcomeMethod,
    StateMethod,
    TaughtMethod,
    without_ties,
)

if TYPE_CHECKING:
    from torch import Tensor

    from opid_core.learning.losses import LossInput
    from opid_core.samples import Samples


class Grpo(OutcomeMethod):
    """A_ep on every response token."""

    name: Literal["grpo"] = "grpo"


class Gigpo(StateMethod):
    """A_ep + w * A_step, which holds visits of one state in a group against each other."""

    name: Literal["gigpo"] = "gigpo"
    step_weight: float = Field(default=1.0, ge=0)
    """Weight of GiGPO's step advantage."""

    def advantages(self, samples: Samples) -> Advantages:
        return Advantages.of(samples, outcome=self.outcome(samples), step=self.step(samples))


class Rloo(Method):
    """S - mean over the group's other trajectories."""

    name: Literal["rloo"] = "rloo"
    tied_groups: Literal["keep", "zero"] = "keep"
    """What a group of equal outcomes contributes: the penalty's variance (`keep`), or nothing."""

    def advantages(self, samples: Samples) -> Advantages:
        values = leave_one_out_advantages(samples.numbers("score"), samples.group_ids, samples.trajectory_ids)
        return Advantages.of(samples, outcome=without_ties(values, samples) if self.tied_groups == "zero" else values)


class Dapo(OutcomeMethod):
    """A_ep, from groups of mixed outcome alone, with a wider clip above: 0.2 / 0.28."""

    filters_ties: ClassVar[bool] = True
    learner_defaults: ClassVar[Mapping[str, Any]] = {"clip_high": 0.28}

    name: Literal["dapo"] = "dapo"
    resample_tied_rounds: int = Field(default=3, ge=0)
    """At most so many times are further tasks drawn for groups whose outcomes tie, which are not trained on."""

    @property
    def further_draws(self) -> int:
        return self.resample_tied_rounds


class SkillGrpo(OutcomeMethod):
    """A_ep, with a static skill of the task's type in the policy's own prompt while it trains."""

    name: Literal["skill_grpo"] = "skill_grpo"
    skill_bank: str
    """JSON file of static skills by task type, which stand in the policy's prompt while it trains."""
    keep_skill_at_test: bool = False
    """Evaluate with the skills of `skill_bank` in the prompt too."""

    @property
    def bank_in_training(self) -> str | None:
        return self.skill_bank

    @property
    def bank_at_test(self) -> str | None:
        return self.skill_bank if self.keep_skill_at_test else None


class Opsd(TaughtMethod, DistillingMethod):
    """stop_gradient(sigmoid(beta * d)) * d, d = log pi_T - log pi, and no policy-gradient term: the gradient raises the
    sampled tokens, those most that the skill favours.
    """

    name: Literal["opsd"] = "opsd"
    gate_beta: float = Field(default=5.0, ge=0)
    """Slope of the distillation loss's gate sigmoid(beta * delta)."""

    def advantages(self, samples: Samples) -> Advantages:
        return Advantages.of(samples)

    def loss(self, inputs: LossInput) -> tuple[Tensor, dict[str, Tensor]]:
        assert inputs.skill_log_probs is not None
        assert inputs.skill_mask is not None
        difference = (inputs.skill_log_probs.detach() - inputs.log_probs).where(inputs.skill_mask, 0.0)
        gate = (self.gate_beta * difference.detach()).sigmoid()
        return self.distil(inputs, gate * difference)


class Sdar(OutcomeMethod, Opsd):
    """A_ep and OPSD's loss."""

    name: Literal["sdar"] = "sdar"


class GrpoOpsd(Sdar):
    """A_ep and OPSD's loss with a constant gate of 0.5."""

    name: Literal["grpo_opsd"] = "grpo_opsd"
    gate_beta: float = Field(default=0.0, ge=0)
    """Slope of the distillation loss's gate sigmoid(beta * delta); 0 is a constant gate of 0.5."""


class SkillSd(OutcomeMethod, TaughtMethod, DistillingMethod):
    """A_ep and ratio * k3, k3 = exp(-l) - 1 + l, l = log pi - log pi_T, ratio = pi / pi_old.

    Gradients flow through both factors: in expectation over the old policy's tokens, value and gradient are those of
    KL(pi || pi_T).
    """

    name: Literal["skill_sd"] = "skill_sd"
    distillation_coefficient: float = Field(default=0.001, ge=0)
    """Weight of the distillation loss."""

    def loss(self, inputs: LossInput) -> tuple[Tensor, dict[str, Tensor]]:
        away = inputs.log_ratio(inputs.skill_log_probs, inputs.skill_mask)
        ratio = inputs.log_ratio(inputs.old_log_probs, inputs.skill_mask).exp()
        return self.distil(inputs, ratio * ((-away).exp() - 1 + away))
