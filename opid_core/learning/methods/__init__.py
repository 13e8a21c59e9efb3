"""Learning signals: one small module a method, each with a `METHOD` (ALGORITHM, sections 6 and 8)."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

from opid_core.config import MethodConfig
from opid_core.errors import ConfigError, DataError
from opid_core.learning import advantages

NAMES = ("grpo", "gigpo", "rloo", "dapo", "skill_grpo", "opsd", "grpo_opsd", "skill_sd", "rlsd", "sdar", "opid")


@dataclass(frozen=True)
class Batch:
    """The step samples of an iteration. Log-probs in nats; padding tokens may hold anything."""

    iteration: int
    """Iterations completed before this one."""
    scores: Float[np.ndarray, " samples"]
    """R of the sample's trajectory less the step's own penalty (`advantages.outcome_scores`)."""
    outcomes: Float[np.ndarray, " samples"]
    """The sample's trajectory's return without any penalty; decides which groups tie."""
    returns: Float[np.ndarray, " samples"]
    """Discounted return of the step less its own penalty."""
    states: list[str]
    """The step's raw observation."""
    group_ids: list[str]
    trajectory_ids: list[str]
    response_mask: Bool[np.ndarray, "samples tokens"]
    old_log_probs: Float[np.ndarray, "samples tokens"]
    skill_log_probs: Float[np.ndarray, "samples tokens"]
    """Under the routed skill; anything where nothing is routed."""
    added_log_probs: Float[np.ndarray, "samples tokens"]
    """Under the episode skill where `added`; anything elsewhere."""
    routes: list[str]
    """`schema.ROUTE_NAMES`, one a sample."""
    added: Bool[np.ndarray, " samples"]
    """Whether the sample, of route `step`, was scored under its episode skill too (routing `additive`)."""


@dataclass(frozen=True)
class Advantages:
    """`total` = (`outcome` + `step` on every response token + `skill`) * mask; the parts carry their weights."""

    outcome: Float[np.ndarray, " samples"]
    step: Float[np.ndarray, " samples"]
    skill: Float[np.ndarray, "samples tokens"]
    total: Float[np.ndarray, "samples tokens"]


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

    advantages: Callable[[Batch, MethodConfig], Advantages]
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


def outcome_component(batch: Batch, config: MethodConfig) -> Float[np.ndarray, " samples"]:
    """A_ep of every sample, which most methods share."""
    return advantages.outcome_advantages(
        batch.scores,
        batch.group_ids,
        batch.trajectory_ids,
        baseline=config.baseline,
        normalize=config.normalize,
        tied_groups=config.tied_groups,
        outcomes=batch.outcomes,
    )


def step_component(batch: Batch, config: MethodConfig) -> Float[np.ndarray, " samples"]:
    """w * A_step of every sample."""
    if config.step_weight == 0:
        return np.zeros_like(batch.scores)
    found = advantages.state_advantages(
        batch.returns,
        batch.group_ids,
        batch.states,
        normalize=config.normalize,
        similarity=config.state_similarity,
    )
    return (config.step_weight * found).astype(batch.scores.dtype)


def skill_deltas(batch: Batch) -> Float[np.ndarray, "samples tokens"]:
    """delta of every response token with a routed skill, 0 elsewhere. Raises DataError for an unknown route."""
    routed = route_array(batch) != "none"
    return advantages.skill_advantages(batch.skill_log_probs, batch.old_log_probs, batch.response_mask, routed)


def route_array(batch: Batch) -> np.ndarray:
    """The routes as an array of texts [samples]. Raises DataError for an unknown one."""
    routes = np.asarray(batch.routes, dtype=str)
    if unknown := set(routes.tolist()) - {"step", "episode", "none"}:
        raise DataError(f"routes: {sorted(unknown)[0]!r} is none of step, episode, none")
    return routes


def combined(
    batch: Batch,
    outcome: Float[np.ndarray, " samples"],
    *,
    step: Float[np.ndarray, " samples"] | None = None,
    skill: Float[np.ndarray, "samples tokens"] | None = None,
) -> Advantages:
    """The parts and their sum; a part left out is 0 and changes no bit of the sum."""
    samples = outcome if step is None else outcome + step
    on_tokens = np.where(batch.response_mask, samples[:, None], 0).astype(outcome.dtype)
    zeros = np.zeros_like(on_tokens)
    return Advantages(
        outcome=outcome,
        step=np.zeros_like(outcome) if step is None else step,
        skill=zeros if skill is None else skill,
        total=on_tokens if skill is None else on_tokens + skill,
    )


def shares(result: Advantages, response_mask: Bool[np.ndarray, "samples tokens"]) -> dict[str, float]:
    """Share of each component (`outcome`, `step`, `skill`) in the summed absolute advantage over valid tokens.

    All are 0 where every advantage is 0. Source: ALGORITHM, section 6.
    """
    mask = np.asarray(response_mask, dtype=bool)
    if mask.shape != result.skill.shape:
        raise DataError(f"shapes differ: mask {mask.shape}, skill {result.skill.shape}")
    lengths = mask.sum(axis=1)
    parts = {
        "outcome": float(np.abs(result.outcome.astype(np.float64)) @ lengths),
        "step": float(np.abs(result.step.astype(np.float64)) @ lengths),
        "skill": float(np.abs(result.skill[mask].astype(np.float64)).sum()),
    }
    whole = sum(parts.values())
    return {name: part / whole if whole else 0.0 for name, part in parts.items()}
