"""Comparing methods that were run with several seeds and evaluated on one panel of tasks.

All numbers come from a matrix, [seeds, tasks], of the shares of episodes that each method's final policy won.
Intervals are percentiles of a bootstrap that draws seeds first and then tasks within each, so they cover both. With
three seeds the first draw has few values to choose from: such intervals are rather too narrow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from opid_core.errors import DataError

DRAWS = 10_000
LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95% interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """A paired difference of two methods: `p_value` of the two-sided sign-flip test over tasks."""

    estimate: Estimate
    p_value: float


def success(
    won: Float[np.ndarray, "seeds tasks"], task_types: Sequence[str], *, draws: int = DRAWS, seed: int = 0
) -> tuple[Estimate, Estimate]:
    """Success over episodes (micro) and over task types (macro), each the mean over seeds with its interval."""
    types, type_of = _types(won, task_types)
    values = np.asarray(won, np.float64)
    seeds, tasks = _resamples(values.shape, draws, seed)
    micro, macro = np.empty(draws), np.empty(draws)
    for draw in range(draws):
        drawn = values[seeds[draw][:, None], tasks[draw]]
        micro[draw] = drawn.mean()
        macro[draw] = _macro(drawn, type_of[tasks[draw]], len(types))
    whole = np.broadcast_to(type_of, values.shape)
    return _estimate(values.mean(), micro), _estimate(_macro(values, whole, len(types)), macro)


def success_by_type(won: Float[np.ndarray, "seeds tasks"], task_types: Sequence[str]) -> dict[str, float]:
    """Share of won episodes of each task type, over all seeds."""
    types, type_of = _types(won, task_types)
    return {name: float(won[:, type_of == index].mean()) for index, name in enumerate(types)}


def difference(
    won: Float[np.ndarray, "seeds tasks"],
    baseline: Float[np.ndarray, "seeds tasks"],
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> Difference:
    """Success of one method less that of another, seed by seed and task by task.

    The test flips the sign of each task's difference (its mean over seeds): under the null hypothesis that the two
    policies are alike both signs are as likely. It covers the draw of tasks and actions, not that of training runs.
    Raises DataError where the two were not run with the same seeds on the same tasks.
    """
    if won.shape != baseline.shape:
        raise DataError(f"methods with different seeds or tasks cannot be paired: {won.shape} and {baseline.shape}")
    paired = np.asarray(won, np.float64) - np.asarray(baseline, np.float64)
    seeds, tasks = _resamples(paired.shape, draws, seed)
    means = np.array([paired[seeds[draw][:, None], tasks[draw]].mean() for draw in range(draws)])
    by_task = paired.mean(axis=0)
    signs = np.random.default_rng([seed, 1]).choice((-1.0, 1.0), size=(draws, len(by_task)))
    flipped = np.abs(signs @ by_task) >= abs(by_task.sum()) - 1e-9
    return Difference(_estimate(paired.mean(), means), float((flipped.sum() + 1) / (draws + 1)))


def area_under_curve(episodes: Float[np.ndarray, " points"], success: Float[np.ndarray, " points"]) -> float:
    """Mean success over the episodes seen, by the trapezoid rule: one number for sample efficiency.

    A single point is its own mean.
    """
    if len(episodes) < 2:
        return float(success[-1])
    return float(np.trapezoid(success, episodes) / (episodes[-1] - episodes[0]))


def _types(won: np.ndarray, task_types: Sequence[str]) -> tuple[list[str], Int[np.ndarray, " tasks"]]:
    if won.ndim != 2 or won.shape[1] != len(task_types) or not won.size:
        raise DataError(f"expected outcomes [seeds, {len(task_types)} tasks], got {won.shape}")
    types = sorted(set(task_types))
    return types, np.array([types.index(name) for name in task_types])


def _macro(values: Float[np.ndarray, "seeds tasks"], type_of: Int[np.ndarray, "seeds tasks"], types: int) -> float:
    """Mean over the task types that occur."""
    sums = np.bincount(type_of.ravel(), weights=values.ravel(), minlength=types)
    counts = np.bincount(type_of.ravel(), minlength=types)
    return float((sums[counts > 0] / counts[counts > 0]).mean())


def _resamples(
    shape: tuple[int, ...], draws: int, seed: int
) -> tuple[Int[np.ndarray, "draws seeds"], Int[np.ndarray, "draws seeds tasks"]]:
    n_seeds, n_tasks = shape
    generator = np.random.default_rng(seed)
    seeds = generator.integers(n_seeds, size=(draws, n_seeds))
    return seeds, generator.integers(n_tasks, size=(draws, n_seeds, n_tasks), dtype=np.int32)


def _estimate(mean: float, draws: np.ndarray) -> Estimate:
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(mean), float(low), float(high))
