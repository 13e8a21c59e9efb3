"""The statistics selector: which steps are critical by what their returns were (ALGORITHM, section 3)."""

from __future__ import annotations

from typing import Any

import numpy as np

from opid_core.learning.advantages import (
    EPSILON,
    Ids,
    as_floats,
    check_lengths,
    codes,
    group_statistics,
    like_source,
    pair_codes,
)


def critical_steps(
    returns: Any,
    states: Ids,
    group_ids: Ids,
    trajectory_ids: Ids,
    *,
    min_group_size: int = 2,
    var_quantile: float = 0.75,
    top_k: int = 1,
    below_mean_only: bool = True,
) -> Any:
    """The statistics selector: a boolean [samples] array (a tensor for tensors), true at critical steps.

    `returns` [samples] are discounted step returns; `states` the raw observations. Steps of a trajectory count in
    order of appearance; of equal scores the later step wins. Raises DataError for unequal lengths.
    Source: ALGORITHM, section 3.
    """
    values, groups = as_floats(returns), codes(group_ids)
    state_groups = pair_codes(groups, codes(states))
    trajectories = pair_codes(groups, codes(trajectory_ids))
    check_lengths(returns=values, states=state_groups, trajectory_ids=trajectories)
    critical = np.zeros(len(values), dtype=bool)
    statistics = group_statistics(values, state_groups)
    large = statistics.count >= min_group_size
    if large.any():
        threshold = np.quantile(statistics.variance[large], var_quantile)
        eligible = large & (statistics.variance >= threshold) & (statistics.variance > 0)
        below = statistics.mean[state_groups] - values
        deviation = np.maximum(below, 0.0) if below_mean_only else np.abs(below)
        scores = statistics.variance[state_groups] * (deviation + EPSILON)
        candidate = eligible[state_groups] & ((deviation > 0) | (not below_mean_only))
        chosen = np.flatnonzero(candidate)
        # best first inside each trajectory, of equal scores the later step (its index here stands for its number)
        chosen = chosen[np.lexsort((-chosen, -scores[chosen], trajectories[chosen]))]
        owners = trajectories[chosen]
        rank = np.arange(len(chosen)) - np.searchsorted(owners, owners)
        critical[chosen[rank < top_k]] = True
    return like_source(critical, returns)
