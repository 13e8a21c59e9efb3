"""Comparing methods that were run with several seeds and evaluated on one panel of tasks.

All numbers come from a matrix, [seeds, tasks], of the shares of episodes that each method's final policy won.
Intervals are percentiles of a bootstrap that draws seeds and tasks, so they cover both. All seeds are evaluated on one
panel, so a draw takes the same tasks for all of them: drawn for each seed apart, a panel of hard tasks would average
out over the seeds, and intervals would be too narrow. Source: Owen, The pigeonhole bootstrap, 2007. With three seeds
the draw of seeds has few values to choose from: where runs differ much, such intervals are still rather too narrow.
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
    drawn, tasks = _resampled(won, draws, seed)
    macro = np.array([_macro(*resample, len(types)) for resample in zip(drawn, type_of[tasks], strict=True)])
    by_task = np.asarray(won, np.float64).mean(axis=0)
    return _estimate(by_task.mean(), drawn.mean(axis=1)), _estimate(_macro(by_task, type_of, len(types)), macro)


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
    drawn, _ = _resampled(paired, draws, seed)
    by_task = paired.mean(axis=0)
    signs = np.random.default_rng([seed, 1]).choice((-1.0, 1.0), size=(draws, len(by_task)))
    flipped = np.abs(signs @ by_task) >= abs(by_task.sum()) - 1e-9
    return Difference(_estimate(paired.mean(), drawn.mean(axis=1)), float((flipped.sum() + 1) / (draws + 1)))


def area_under_curve(
    episodes: Float[np.ndarray, " points"], success: Float[np.ndarray, " points"], until: float
) -> float:
    """Mean success over the first `until` episodes, by the trapezoid rule: one number for sample efficiency.

    Success is linear between the points; `until` lies within them. No episodes: the first point's success.
    """
    if until <= episodes[0]:
        return float(success[0])
    before = episodes < until
    xs, ys = np.append(episodes[before], until), np.append(success[before], np.interp(until, episodes, success))
    return float(np.trapezoid(ys, xs) / (until - episodes[0]))


def mean_curve(
    curves: Sequence[tuple[Float[np.ndarray, " points"], Float[np.ndarray, " points"]]],
) -> tuple[Float[np.ndarray, " points"], Float[np.ndarray, " points"]]:
    """The mean of curves (x, y) that start together, each linear between its points, at every x that any of them has,
    up to where the shortest ends."""
    end = min(x[-1] for x, _ in curves)
    shared = np.unique(np.concatenate([x[x <= end] for x, _ in curves]))
    return shared, np.mean([np.interp(shared, x, y) for x, y in curves], axis=0)


def _types(won: np.ndarray, task_types: Sequence[str]) -> tuple[list[str], Int[np.ndarray, " tasks"]]:
    if won.ndim != 2 or won.shape[1] != len(task_types) or not won.size:
        raise DataError(f"expected outcomes [seeds, {len(task_types)} tasks], got {won.shape}")
    types = sorted(set(task_types))
    return types, np.array([types.index(name) for name in task_types])


def _macro(by_task: Float[np.ndarray, " tasks"], type_of: Int[np.ndarray, " tasks"], types: int) -> float:
    """Mean over the task types that occur."""
    sums = np.bincount(type_of, weights=by_task, minlength=types)
    counts = np.bincount(type_of, minlength=types)
    return float((sums[counts > 0] / counts[counts > 0]).mean())


def _resampled(
    values: Float[np.ndarray, "seeds tasks"], draws: int, seed: int
) -> tuple[Float[np.ndarray, "draws tasks"], Int[np.ndarray, "draws tasks"]]:
    """Of each draw of seeds and of tasks, with replacement: each drawn task's mean over the drawn seeds, and which
    tasks they are."""
    n_seeds, n_tasks = values.shape
    generator = np.random.default_rng(seed)
    times = generator.multinomial(n_seeds, np.full(n_seeds, 1 / n_seeds), size=draws)
    tasks = generator.integers(n_tasks, size=(draws, n_tasks), dtype=np.int32)
    by_task = times @ np.asarray(values, np.float64) / n_seeds
    return np.take_along_axis(by_task, tasks, axis=1), tasks


def _estimate(mean: float, draws: np.ndarray) -> Estimate:
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(mean), float(low), float(high))
