"""Comparisons of methods that were run with several seeds and evaluated on one panel of tasks, by a matrix, [seeds,
tasks], of the shares of episodes that each method's final policy won.

Intervals are percentiles of a bootstrap that draws seeds and tasks, so they cover both. All seeds are evaluated on one
panel, so a draw takes the same tasks for all of them: drawn for each seed apart, a panel of hard tasks would average
out over the seeds, and intervals would be too narrow. Source: Owen, The pigeonhole bootstrap, 2007. With three seeds
the draw of seeds has few values to choose from: where runs differ much, such intervals are still rather too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from opid_core.errors import DataError
from opid_core.evaluation import ALIKE, LEVEL, Estimate, wilson_interval

DRAWS = 10_000


@dataclass(frozen=True)
class PairedDifference:
    """A paired difference of two methods: `p_value` of the two-sided sign-flip test over tasks."""

    estimate: Estimate
    seeds: int
    tasks: int
    means: tuple[float, float]
    """Of each method, over these seeds and tasks."""
    p_value: float
    detectable: float | None
    """The true difference that a test over so many tasks, of differences that vary so much, finds with a chance of 80%
    (at 5%); None where they do not vary, or with a single task."""
    adjusted_p: float | None = None
    """Where there are several comparisons: corrected for their number."""


def success(
    won: Float[np.ndarray, "seeds tasks"], task_types: Sequence[str], *, draws: int = DRAWS
) -> tuple[Estimate, Estimate]:
    """Success over episodes (micro) and over task types (macro), each the mean over seeds with its interval; where all
    is won, or nothing, Wilson's of as many trials as tasks."""
    types, type_of = _types(won, task_types)
    drawn, tasks = _resampled(won, draws)
    macro = np.array([_macro(*resample, len(types)) for resample in zip(drawn, type_of[tasks], strict=True)])
    by_task = np.asarray(won, np.float64).mean(axis=0)
    micro = _estimate(by_task.mean(), drawn.mean(axis=1), len(by_task))
    return micro, _estimate(_macro(by_task, type_of, len(types)), macro, len(by_task))


def success_by_type(won: Float[np.ndarray, "seeds tasks"], task_types: Sequence[str]) -> dict[str, float]:
    """Share of won episodes of each task type, over all seeds."""
    types, type_of = _types(won, task_types)
    return {name: float(won[:, type_of == index].mean()) for index, name in enumerate(types)}


def difference(
    won: Float[np.ndarray, "seeds tasks"],
    baseline: Float[np.ndarray, "seeds tasks"],
    *,
    draws: int = DRAWS,
) -> PairedDifference:
    """Success of one method less that of another, seed by seed and task by task.

    The test flips the sign of each task's difference (its mean over seeds): under the null hypothesis that the two
    policies are alike both signs are as likely. It covers the draw of tasks and actions, not that of training runs.
    Raises DataError where the two were not run with the same seeds on the same tasks.
    """
    if won.shape != baseline.shape:
        raise DataError(f"methods with different seeds or tasks cannot be paired: {won.shape} and {baseline.shape}")
    paired = np.asarray(won, np.float64) - np.asarray(baseline, np.float64)
    drawn, _ = _resampled(paired, draws)
    by_task = paired.mean(axis=0)
    signs = np.random.default_rng([0, 1]).choice((-1.0, 1.0), size=(draws, len(by_task)))
    flipped = np.abs(signs @ by_task) >= abs(by_task.sum()) - 1e-9  # equal sums count, however they are rounded
    p_value = float((flipped.sum() + 1) / (draws + 1))
    return PairedDifference(
        estimate=_estimate(paired.mean(), drawn.mean(axis=1), len(by_task), lowest=-1.0),
        seeds=paired.shape[0],
        tasks=paired.shape[1],
        means=(float(np.mean(won)), float(np.mean(baseline))),
        p_value=p_value,
        detectable=detectable_difference(by_task),
    )


def detectable_difference(by_task: Float[np.ndarray, " tasks"]) -> float | None:
    """(1.960 + 0.842) x the standard error of the mean difference of tasks: see `PairedDifference.detectable`. Source:
    Cohen, Statistical Power Analysis, 1988 (normal approximation, two-sided)."""
    if len(by_task) < 2 or np.ptp(by_task) < ALIKE:
        return None
    return (1.959964 + 0.841621) * float(np.std(by_task, ddof=1)) / math.sqrt(len(by_task))


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
    values: Float[np.ndarray, "seeds tasks"], draws: int
) -> tuple[Float[np.ndarray, "draws tasks"], Int[np.ndarray, "draws tasks"]]:
    """Of each draw of seeds and of tasks, with replacement: each drawn task's mean over the drawn seeds, and which
    tasks they are."""
    n_seeds, n_tasks = values.shape
    generator = np.random.default_rng(0)
    times = generator.multinomial(n_seeds, np.full(n_seeds, 1 / n_seeds), size=draws)
    tasks = generator.integers(n_tasks, size=(draws, n_tasks), dtype=np.int32)
    by_task = times @ np.asarray(values, np.float64) / n_seeds
    return np.take_along_axis(by_task, tasks, axis=1), tasks


def _estimate(mean: float, draws: np.ndarray, tasks: int, lowest: float = 0.0) -> Estimate:
    """The mean, of values from `lowest` to 1, with the interval of its `draws`. Where all `tasks` are alike, these tell
    nothing of how others would differ: at most Wilson's upper end of 0 in `tasks` do, each by as much as it can."""
    if np.ptp(draws) < ALIKE:
        unlike = wilson_interval(0, tasks)[1]
        return Estimate(float(mean), float(mean - unlike * (mean - lowest)), float(mean + unlike * (1 - mean)))
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(mean), float(low), float(high))
