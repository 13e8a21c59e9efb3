"""Learning signals: one small module a method, each with a `METHOD` (ALGORITHM, sections 6 and 8)."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from opid_core.config import MethodConfig
from opid_core.errors import ConfigError, DataError
from opid_core.learning import advantages
from opid_core.samples import Samples

NAMES = ("grpo", "gigpo", "rloo", "dapo", "skill_grpo", "opsd", "grpo_opsd", "skill_sd", "rlsd", "sdar", "opid")


@dataclass(frozen=True)
class Advantages:
    """The parts of the advantages of samples, with their weights: `outcome` and `step` on every response token of a
    sample, `skill` on each token of its own."""

    outcome: Float[np.ndarray, " samples"]
    step: Float[np.ndarray, " samples"]
    skill: Float[np.ndarray, " tokens"]


@dataclass(frozen=True)
class Distillation:
    """A token loss towards the old policy under the routed skill, which the learner adds to its own."""

    kind: Literal["gated", "ratio_k3"]
    """`losses.gated_distillation_loss` or `losses.ratio_k3_distillation_loss`."""
    coefficient: float
    gate_beta: float = 0.0
    """Of the gate sigmoid(beta * delta); 0 is a constant gate of 0.5 (`gated` only)."""


@dataclass(frozen=True)
class Method:
    """What a method is made of."""

    advantages: Callable[[Samples, MethodConfig], Advantages]
    """Of samples that have, beside the columns of `steps` and `routes`, `score` (R of the trajectory less the step's
    own penalty), `discounted_return` (less that penalty) and the three log-probs of the old policy."""
    uses_skills: bool = False
    """Whether responses are scored under the skills of their trajectories; if not, none are extracted or routed."""
    filters_ties: bool = False
    """Whether groups of equal outcome are not trained on, and further tasks drawn for them."""
    distillation: Callable[[MethodConfig], Distillation] | None = None


def get(name: str) -> Method:
    """The method of that name. Raises ConfigError for an unknown one."""
    if name not in NAMES:
        raise ConfigError(f"method.name: unknown method {name!r}; known: {', '.join(NAMES)}")
    return importlib.import_module(f"opid_core.learning.methods.{name}").METHOD


def distillation(config: MethodConfig) -> Distillation | None:
    """The method's distillation loss, None where it has none or its coefficient is 0."""
    declared = get(config.name).distillation
    return declared(config) if declared and config.distillation_coefficient > 0 else None


def outcome_component(samples: Samples, config: MethodConfig) -> Float[np.ndarray, " samples"]:
    """A_ep of every sample, which most methods share."""
    return advantages.outcome_advantages(
        samples.numbers("score"),
        samples.group_ids,
        samples.trajectory_ids,
        baseline=config.baseline,
        normalize=config.normalize,
        tied_groups=config.tied_groups,
        outcomes=samples.won,
    )


def step_component(samples: Samples, config: MethodConfig) -> Float[np.ndarray, " samples"]:
    """w * A_step of every sample."""
    if config.step_weight == 0:
        return np.zeros(len(samples), np.float32)
    advantage = advantages.state_advantages(
        samples.numbers("discounted_return"),
        samples.group_ids,
        samples.texts("observation"),
        normalize=config.normalize,
        similarity=config.state_similarity,
    )
    return (config.step_weight * advantage).astype(np.float32)


def skill_deltas(
    samples: Samples,
    routed: Bool[np.ndarray, " samples"],
    skill_log_probs: Float[np.ndarray, " tokens"],
    *,
    normalize: bool = False,
    clip: float | None = None,
) -> Float[np.ndarray, " tokens"]:
    """delta of every response token of the samples that are `routed`, 0 elsewhere; see `skill_advantages`."""
    old = samples.on_tokens("old_log_probs")
    return advantages.skill_advantages(
        skill_log_probs[:, None],  # each token a row of its own: routed or not
        old[:, None],
        np.ones((len(old), 1), bool),
        samples.per_token(routed),
        normalize=normalize,
        clip=clip,
    )[:, 0]


def route_array(samples: Samples) -> np.ndarray:
    """The routes as an array of texts [samples]. Raises DataError for an unknown one."""
    routes = np.asarray(samples.texts("route"), dtype=str)
    if unknown := set(routes.tolist()) - {"step", "episode", "none"}:
        raise DataError(f"routes: {sorted(unknown)[0]!r} is none of step, episode, none")
    return routes


def combined(
    samples: Samples,
    outcome: Float[np.ndarray, " samples"],
    *,
    step: Float[np.ndarray, " samples"] | None = None,
    skill: Float[np.ndarray, " tokens"] | None = None,
) -> Advantages:
    """The parts together; one that is left out is 0."""
    return Advantages(
        outcome=outcome,
        step=np.zeros_like(outcome) if step is None else step,
        skill=np.zeros(len(samples.response_ids.values), np.float32) if skill is None else skill,
    )


def shares(result: Advantages, response_lengths: Int[np.ndarray, " samples"]) -> dict[str, float]:
    """Share of each component (`outcome`, `step`, `skill`) in the summed absolute advantage over response tokens.

    All are 0 where every advantage is 0. Source: ALGORITHM, section 6.
    """
    parts = {
        "outcome": float(np.abs(result.outcome.astype(np.float64)) @ response_lengths),
        "step": float(np.abs(result.step.astype(np.float64)) @ response_lengths),
        "skill": float(np.abs(result.skill.astype(np.float64)).sum()),
    }
    whole = sum(parts.values())
    return {name: part / whole if whole else 0.0 for name, part in parts.items()}
