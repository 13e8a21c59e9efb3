"""What a method is: a section of the config with the keys that it reads, its advantages, and what it adds to the loss.

What several methods share stands here too: keys and, with the keys, what reads them (ALGORITHM, sections 2, 5 and 8).
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
from jaxtyping import Float, Int
from pydantic import Field, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from opid_core.errors import DataError
from opid_core.learning.advantages import Normalize, outcome_advantages, state_advantages, tied_samples
from opid_core.samples import Ragged
from opid_core.sections import Section

if TYPE_CHECKING:
    from torch import Tensor

    from opid_core.learning.losses import Loss, LossInput
    from opid_core.samples import Samples


@dataclass(frozen=True)
class Advantages:
    """The parts of the advantages of samples, with their weights: `outcome` and `step` on every response token of a
    sample, `skill` on each token of its own."""

    outcome: Float[np.ndarray, " samples"]
    step: Float[np.ndarray, " samples"]
    skill: Float[np.ndarray, " tokens"]

    @classmethod
    def of(
        cls,
        samples: Samples,
        *,
        outcome: Float[np.ndarray, " samples"] | None = None,
        step: Float[np.ndarray, " samples"] | None = None,
        skill: Float[np.ndarray, " tokens"] | None = None,
    ) -> Advantages:
        """The parts of `samples` in float32; one that is left out is 0."""
        parts = (outcome, len(samples)), (step, len(samples)), (skill, len(samples.response_ids.values))
        return cls(*(np.zeros(n, np.float32) if part is None else part.astype(np.float32) for part, n in parts))

    def magnitudes(self, response_lengths: Int[np.ndarray, " samples"]) -> dict[str, float]:
        """Mean absolute advantage of a response token by part; 0 of no token. Source: ALGORITHM, section 6."""
        parts = {
            "outcome": float(np.abs(self.outcome.astype(np.float64)) @ response_lengths),
            "step": float(np.abs(self.step.astype(np.float64)) @ response_lengths),
            "skill": float(np.abs(self.skill.astype(np.float64)).sum()),
        }
        return {name: part / max(1, len(self.skill)) for name, part in parts.items()}

    def shares(self, response_lengths: Int[np.ndarray, " samples"]) -> dict[str, float]:
        """Share of each part in the summed absolute advantage over response tokens; all are 0 where every advantage is.

        Source: ALGORITHM, section 6.
        """
        parts = self.magnitudes(response_lengths)
        whole = sum(parts.values())
        return {name: part / whole if whole else 0.0 for name, part in parts.items()}


class Method(Section):
    """The learning signal; docs/methods.md has every formula. A key that the method does not read is refused."""

    uses_skills: ClassVar[bool] = False
    """Whether responses are scored under the skills of their trajectories; if not, none are extracted or routed."""
    filters_ties: ClassVar[bool] = False
    """Whether groups of equal outcome are not trained on."""
    learner_defaults: ClassVar[Mapping[str, Any]] = {}
    """Keys of the section `learner` that have another default under this method."""
    loss: ClassVar[Loss | None] = None
    """What is added to the learner's own loss, as a method of the class: `def loss(self, inputs: LossInput)`, which
    returns its value and detached numbers to log, both shares of the mini-batch's (`LossInput.aggregate`)."""

    name: str
    """What is learned from an iteration; `module:name` is a method of your own (docs/methods.md)."""
    gamma: float = Field(default=0.95, gt=0, le=1)
    """Discount of the step returns (step advantage, statistics selector)."""

    def advantages(self, samples: Samples) -> Advantages:
        """The advantages of samples that have, beside the columns of `steps` and `routes`, `score` (R of the trajectory
        less the step's own penalty), `discounted_return` (less that penalty) and the log-probs of the old policy."""
        raise NotImplementedError

    def wants_skills(self, completed_iterations: int) -> bool:
        """Whether skills are extracted after so many iterations."""
        return self.uses_skills

    def against(self, samples: Samples) -> Samples:
        """What `advantages` is given of `samples`."""
        return samples

    def taught(self, samples: Samples) -> Samples:
        """What the learner is given of `samples`: `skill_log_probs` are those of whom the method's loss learns from."""
        return samples

    @property
    def further_draws(self) -> int:
        """At most so many times are further tasks drawn for groups whose outcomes tie."""
        return 0

    @property
    def bank_in_training(self) -> str | None:
        """File of the static skills that stand in the policy's prompts while it trains."""
        return None

    @property
    def bank_at_test(self) -> str | None:
        """File of the static skills that stand in the prompts of evaluations."""
        return None

    @property
    def bank_of_teacher(self) -> str | None:
        """File of the static skills that responses are scored under, in place of an analyzer's."""
        return None

    @model_validator(mode="before")
    @classmethod
    def _reads_its_keys(cls, data: Any) -> Any:
        unread = [key for key in data if key not in cls.model_fields] if isinstance(data, Mapping) else []
        if unread:
            name, details = data.get("name", cls.model_fields["name"].default), []
            for key in unread:
                near = difflib.get_close_matches(str(key), cls.model_fields, n=1, cutoff=0.8)
                told = {
                    "method": name,
                    "hint": f"did you mean {near[0]!r}?" if near else f"its keys: {', '.join(cls.model_fields)}",
                }
                error = PydanticCustomError("unread_key", "the method {method} does not read this key; {hint}", told)
                details.append(InitErrorDetails(type=error, loc=(key,), input=data[key]))
            raise ValidationError.from_exception_data("method", details)
        return data


class OutcomeMethod(Method):
    """A method with an outcome advantage; as it stands, GRPO's."""

    baseline: Literal["step", "trajectory"] = "step"
    """Group statistics over all step samples (`released`) or one value a trajectory (`paper`)."""
    normalize: Normalize = "mean_std"
    """Subtract the group's mean (`released`: WebShop), or also divide by its standard deviation: with Bessel's
    correction and an epsilon (`released`: ALFWorld and search), or the population's (`paper`)."""
    tied_groups: Literal["keep", "zero"] = "keep"
    """What a group of equal outcomes contributes: the penalty's variance scaled to unit size (`keep`), or nothing."""

    def advantages(self, samples: Samples) -> Advantages:
        """A_ep on every response token. Source: ALGORITHM, sections 2 and 8."""
        return Advantages.of(samples, outcome=self.outcome(samples))

    def outcome(self, samples: Samples) -> Float[np.ndarray, " samples"]:
        """A_ep of every sample."""
        ids = samples.group_ids, samples.trajectory_ids
        values = outcome_advantages(samples.numbers("score"), *ids, baseline=self.baseline, normalize=self.normalize)
        return without_ties(values, samples) if self.tied_groups == "zero" else values


class StateMethod(OutcomeMethod):
    """A method with GiGPO's step advantage."""

    step_weight: float = Field(default=0.0, ge=0)
    """Weight of GiGPO's step advantage."""
    state_similarity: float | None = Field(default=None, gt=0, le=1)
    """Step advantage: observations at least so similar count as one state; null: identical ones only."""

    def step(self, samples: Samples) -> Float[np.ndarray, " samples"] | None:
        """w * A_step of every sample, None without a weight."""
        if self.step_weight == 0:
            return None
        return self.step_weight * state_advantages(
            samples.numbers("discounted_return"),
            samples.group_ids,
            samples.texts("observation"),
            normalize=self.normalize,
            similarity=self.state_similarity,
        )


class SkillMethod(Method):
    """A method that scores responses under the skills of their trajectories."""

    uses_skills: ClassVar[bool] = True

    routing: Literal["critical_first", "episode_only", "step_only", "random"] = "critical_first"
    """Which skill a step is scored under: its own, else the episode's (`critical_first`); one kind alone; or step
    skills at random steps (`random`)."""

    placebo_episode: Literal["swapped", "fixed"] | None = None
    """Placebo of each episode skill, under which its steps are scored too: the episode skill of another group's
    trajectory that ended alike (`swapped`), or one constant text of as many words (`fixed`); null: none."""
    placebo_step: Literal["random_action", "swapped", "fixed"] | None = None
    """Placebo of each step skill: one that names another action on offer at the step, drawn at random
    (`random_action`); another group's step skill (`swapped`); a constant text (`fixed`); null: none."""
    signal: Literal["skill", "placebo", "contrast"] = "skill"
    """What is learned from: the skill against none; its placebo against none, as a control (`placebo`); or the skill
    against its placebo (`contrast`: methods whose skill term is an advantage)."""

    def uses_kinds(self, completed_iterations: int) -> tuple[bool, bool]:
        """Whether episode skills are routed, and whether step skills are, after so many iterations."""
        return self.routing != "step_only", self.routing != "episode_only"

    def against(self, samples: Samples) -> Samples:
        """`samples` with the two log-probs that the signal compares as `skill_log_probs` and `old_log_probs`; those
        that lack a placebo which it needs have route `none`. Source: ALGORITHM, section 4."""
        if self.signal == "skill":
            return samples
        has = samples.has("placebo_log_probs")
        samples = self.taught(samples).with_columns(route=np.where(has, routes(samples), "none").tolist())
        if self.signal == "placebo":
            return samples
        plain, placebo = samples.tokens("old_log_probs"), samples.on_tokens("placebo_log_probs")
        base = np.where(samples.per_token(has), placebo, plain.values)
        return samples.with_columns(old_log_probs=Ragged(base, plain.offsets))

    def taught(self, samples: Samples) -> Samples:
        if self.signal != "placebo":
            return samples
        return samples.with_columns(skill_log_probs=samples.table["placebo_log_probs"])

    @model_validator(mode="after")
    def _placebos_fit(self) -> Self:
        placebos = {"placebo_episode": self.placebo_episode, "placebo_step": self.placebo_step}
        if self.routing == "additive" and any(placebos.values()):
            raise ValueError(
                "routing: additive scores two skills at once, which have no placebo; leave one of them out"
            )
        if self.signal == "contrast" and isinstance(self, DistillingMethod):
            raise ValueError("signal: contrast is for methods whose skill term is an advantage, not a loss")
        routed = dict(zip(placebos, self.uses_kinds(0), strict=True))
        lacking = [name for name, used in routed.items() if used and placebos[name] is None]
        if self.signal != "skill" and lacking:
            raise ValueError(f"signal: {self.signal} needs {lacking[0]}, because skills of that kind are routed")
        return self


class TaughtMethod(SkillMethod):
    """A method that was published with a static skill in its teacher's prompt."""

    teacher: Literal["bank", "routed"] = "bank"
    """Whose skill responses are scored under: a static one of `skill_bank`, the same for the whole episode (`bank`, as
    published), or the analyzer's, as OPID routes it (`routed`)."""
    skill_bank: str | None = None
    """With `teacher: bank` the JSON file of static skills by task type (`configs/skill_banks`)."""

    @property
    def bank_of_teacher(self) -> str | None:
        return self.skill_bank if self.teacher == "bank" else None

    def uses_kinds(self, completed_iterations: int) -> tuple[bool, bool]:
        return (True, False) if self.teacher == "bank" else super().uses_kinds(completed_iterations)

    @model_validator(mode="after")
    def _bank_where_it_is_read(self) -> Self:
        if self.teacher == "bank" and self.skill_bank is None:
            raise ValueError("teacher: bank needs skill_bank (configs/skill_banks has some); or set teacher: routed")
        if self.teacher == "routed" and self.skill_bank is not None:
            raise ValueError("skill_bank: teacher: routed takes the analyzer's skills and reads none; leave it out")
        if self.teacher == "bank" and self.routing in ("step_only", "random"):
            raise ValueError(f"routing: {self.routing}: the bank's skill is the episode's; or set teacher: routed")
        return self


class DistillingMethod(SkillMethod):
    """A method that adds a token loss towards the old policy under the routed skill."""

    distillation_coefficient: float = Field(default=0.01, ge=0)
    """Weight of the distillation loss."""

    def distil(self, inputs: LossInput, token_losses: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted loss, aggregated over the tokens of the policy loss: samples without a skill count in the
        denominator. `distillation_loss` is logged before its weight."""
        value = inputs.aggregate(token_losses)
        return self.distillation_coefficient * value, {"distillation_loss": value.detach()}


def without_ties(advantages: Float[np.ndarray, " samples"], samples: Samples) -> Float[np.ndarray, " samples"]:
    """The advantages, but 0 in groups of several trajectories that all won, or all did not, whatever the penalties."""
    return np.where(tied_samples(samples.won, samples.group_ids, samples.trajectory_ids), np.float32(0), advantages)


def routes(samples: Samples) -> np.ndarray:
    """The route of each sample as an array of texts [samples]. Raises DataError for an unknown one."""
    names = np.asarray(samples.texts("route"), dtype=str)
    if unknown := set(names.tolist()) - {"step", "episode", "none"}:
        raise DataError(f"routes: {sorted(unknown)[0]!r} is none of step, episode, none")
    return names
