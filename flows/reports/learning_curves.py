"""Learning curves: success by training episodes played."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float


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
