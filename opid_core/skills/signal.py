"""Does the skill signal favour good actions? Steps whose action is the expert's, against steps whose action is not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from envs.base import Environment, Task
from opid_core.errors import OpidError
from opid_core.warm_start import require_expert


@dataclass(frozen=True)
class Favour:
    """Of steps under one route; delta: log-prob of the whole response with the skill less that without, in nats."""

    as_expert: int
    """Steps whose action is the expert's."""
    otherwise: int
    favoured_as_expert: float
    """Share of the first with delta > 0."""
    favoured_otherwise: float
    """Share of the others with delta > 0."""
    ordered: float
    """Chance that a step of the first kind has a larger delta than one of the other (ties count half): 0.5 is no
    signal."""


def favour(delta: Float[np.ndarray, " steps"], as_expert: Bool[np.ndarray, " steps"]) -> Favour:
    """How delta goes with the expert's choice; a share of no steps is nan."""
    good, bad = delta[as_expert], delta[~as_expert]
    return Favour(len(good), len(bad), _share(good > 0), _share(bad > 0), _ordered(good, bad))


def expert_agrees(environment: Environment, task: Task, steps: Sequence[Mapping[str, Any]]) -> list[bool] | None:
    """Of each step of one trajectory (rows of `steps`, in order) whether the expert, having seen the same, would have
    done the same; None where the expert does not know this task. Raises ConfigError where there is no expert."""
    expert_of, agrees = require_expert(environment), []
    try:
        expert = expert_of.expert(environment.reset(task))
        for step, following in zip(steps, [*steps[1:], None], strict=True):
            agrees.append(expert.decide(step["admissible_actions"]).action == step["action"])
            if following is not None:
                expert.observe(step["action"], following["observation"])
    except OpidError:
        return None
    return agrees


def by_route(rows: Iterable[tuple[str, float, bool]]) -> dict[str, Favour]:
    """`favour` of (route, delta, whether the action is the expert's), by route."""
    found: dict[str, list[tuple[float, bool]]] = {}
    for route, delta, agrees in rows:
        found.setdefault(route, []).append((delta, agrees))
    return {
        route: favour(np.array([delta for delta, _ in pairs]), np.array([agrees for _, agrees in pairs], bool))
        for route, pairs in sorted(found.items())
    }


def _share(flags: np.ndarray) -> float:
    return float(flags.mean()) if len(flags) else float("nan")


def _ordered(good: np.ndarray, bad: np.ndarray) -> float:
    if not len(good) or not len(bad):
        return float("nan")
    ordered = np.sort(bad)
    below = np.searchsorted(ordered, good, side="left")
    ties = np.searchsorted(ordered, good, side="right") - below
    return float((below + ties / 2).mean() / len(bad))
