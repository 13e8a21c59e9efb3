"""Learning signals: one small module a method, each with one function `advantages` (ALGORITHM, sections 6 and 8)."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from opid_core import advantages
from opid_core.config import MethodConfig
from opid_core.errors import ConfigError, DataError

NAMES = ("grpo", "opid")


@dataclass(frozen=True)
class Batch:
    """The step samples of an iteration. Log-probs in nats; padding tokens may hold anything."""

    scores: Float[np.ndarray, " samples"]
    """R of the sample's trajectory less the step's own penalty (`advantages.outcome_scores`)."""
    outcomes: Float[np.ndarray, " samples"]
    """The sample's trajectory's return without any penalty; decides which groups tie."""
    group_ids: list[str]
    trajectory_ids: list[str]
    response_mask: Bool[np.ndarray, "samples tokens"]
    old_log_probs: Float[np.ndarray, "samples tokens"]
    skill_log_probs: Float[np.ndarray, "samples tokens"]
    """Under the routed skill; anything where nothing is routed."""
    routes: list[str]
    """`schema.ROUTE_NAMES`, one a sample."""


@dataclass(frozen=True)
class Advantages:
    """`total` = (`outcome` on every response token + `skill`) * mask; `skill` already carries its lambda."""

    outcome: Float[np.ndarray, " samples"]
    skill: Float[np.ndarray, "samples tokens"]
    total: Float[np.ndarray, "samples tokens"]


def get(name: str) -> Callable[[Batch, MethodConfig], Advantages]:
    """The method's function from a batch to its advantages. Raises ConfigError for an unknown name."""
    if name not in NAMES:
        raise ConfigError(f"method.name: unknown method {name!r}; known: {', '.join(NAMES)}")
    return importlib.import_module(f"opid_core.methods.{name}").advantages


def outcome_component(batch: Batch, config: MethodConfig) -> Float[np.ndarray, " samples"]:
    """A_ep of every sample, which all methods share."""
    return advantages.outcome_advantages(
        batch.scores,
        batch.group_ids,
        batch.trajectory_ids,
        baseline=config.baseline,
        normalize=config.normalize,
        tied_groups=config.tied_groups,
        outcomes=batch.outcomes,
    )


def on_tokens(
    values: Float[np.ndarray, " samples"], response_mask: Bool[np.ndarray, "samples tokens"]
) -> Float[np.ndarray, "samples tokens"]:
    """One number a sample put on each of its response tokens, 0 elsewhere."""
    return np.where(response_mask, values[:, None], 0).astype(values.dtype)


def shares(result: Advantages, response_mask: Bool[np.ndarray, "samples tokens"]) -> dict[str, float]:
    """Share of each component (`outcome`, `skill`) in the summed absolute advantage over valid tokens.

    Both are 0 where every advantage is 0. Source: ALGORITHM, section 6.
    """
    mask = np.asarray(response_mask, dtype=bool)
    if mask.shape != result.skill.shape:
        raise DataError(f"shapes differ: mask {mask.shape}, skill {result.skill.shape}")
    outcome = float(np.abs(result.outcome.astype(np.float64)) @ mask.sum(axis=1))
    skill = float(np.abs(result.skill[mask].astype(np.float64)).sum())
    whole = outcome + skill
    return {"outcome": outcome / whole if whole else 0.0, "skill": skill / whole if whole else 0.0}
