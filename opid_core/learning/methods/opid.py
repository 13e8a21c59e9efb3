"""OPID: the outcome advantage plus the routed skill advantages."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from opid_core.learning.advantages import skill_deltas
from opid_core.learning.methods.base import Advantages, SkillMethod, StateMethod, routes

if TYPE_CHECKING:
    from opid_core.samples import Samples


class Opid(StateMethod, SkillMethod):
    """A_ep + w * A_step + lambda_ep * delta_ep + lambda_step * delta_step."""

    name: Literal["opid"] = "opid"
    lambda_episode: float = Field(default=0.001, ge=0)
    """Weight of the episode skill's advantage; 0 turns episode skills off."""
    lambda_step: float = Field(default=0.001, ge=0)
    """Weight of the step skill's advantage; 0 turns step skills off."""
    normalize_skill: bool = False
    """Standardise the skill signal over all tokens that carry it."""
    clip_skill: float | None = Field(default=None, gt=0)
    """Clip the skill signal to [-c, c]."""
    routing: Literal["critical_first", "episode_only", "step_only", "random", "additive"] = "critical_first"
    """Which skill a step is scored under: its own, else the episode's (`critical_first`); one kind alone; step skills
    at random steps (`random`); or its own and the episode's (`additive`)."""

    lambda_schedule: Literal["constant", "linear", "cosine", "stop"] = "constant"
    """How both lambdas fall with the completed iterations: not at all (`constant`); to 0 after `lambda_iterations`, in
    a line (`linear`), as half a cosine (`cosine`) or all at once (`stop`). From then on no skills are extracted."""
    lambda_iterations: int | None = Field(default=None, ge=1)
    """After so many iterations both lambdas are 0; null under `constant` alone."""

    def lambda_factor(self, completed_iterations: int) -> float:
        """What both lambdas are multiplied with after so many iterations. Source: ALGORITHM, section 6."""
        if self.lambda_schedule == "constant" or self.lambda_iterations is None:
            return 1.0
        past = min(1.0, completed_iterations / self.lambda_iterations)
        falling = {"linear": 1 - past, "cosine": (1 + math.cos(math.pi * past)) / 2, "stop": float(past < 1)}
        return falling[self.lambda_schedule] if past < 1 else 0.0

    def wants_skills(self, completed_iterations: int) -> bool:
        return any(self.uses_kinds(completed_iterations))

    def uses_kinds(self, completed_iterations: int) -> tuple[bool, bool]:
        episode, step = super().uses_kinds(completed_iterations)
        goes_on = self.lambda_factor(completed_iterations) > 0
        return goes_on and episode and self.lambda_episode > 0, goes_on and step and self.lambda_step > 0

    @model_validator(mode="after")
    def _schedule_ends(self) -> Self:
        if (self.lambda_schedule == "constant") != (self.lambda_iterations is None):
            raise ValueError("lambda_schedule: constant goes without lambda_iterations, the others need it")
        return self

    def advantages(self, samples: Samples) -> Advantages:
        """All four parts; normalising and clipping see each kind's tokens apart.

        Raises DataError for an unknown route. Source: ALGORITHM, sections 5 and 6.
        """
        factor = self.lambda_factor(samples.completed_iterations)
        names, added = routes(samples), samples.has("added_log_probs")
        old, under_routed = samples.on_tokens("old_log_probs"), samples.on_tokens("skill_log_probs")
        under_episode = np.where(samples.per_token(added), samples.on_tokens("added_log_probs"), under_routed)
        skill = None
        for weight, routed, log_probs in (
            (factor * self.lambda_episode, (names == "episode") | added, under_episode),
            (factor * self.lambda_step, names == "step", under_routed),
        ):
            if weight == 0 or not routed.any():
                continue
            delta = skill_deltas(
                log_probs, old, samples.per_token(routed), normalize=self.normalize_skill, clip=self.clip_skill
            )
            skill = weight * delta if skill is None else skill + weight * delta
        return Advantages.of(samples, outcome=self.outcome(samples), step=self.step(samples), skill=skill)
