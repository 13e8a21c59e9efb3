"""Advantages of step samples (ALGORITHM, sections 2, 5 and 8): arrays in, arrays out, no gradients.

Every function takes numpy arrays or torch tensors (or sequences) and returns the kind that its first argument has;
sums run in float64 whatever the input's number type, so the order of the samples does not matter.
"""

from __future__ import annotations

import sys
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Bool, Float, Int

from opid_core.errors import DataError

Array = np.ndarray
Ids = Any
"""One hashable a sample: a sequence, a numpy array or a torch tensor."""
EPSILON = 1e-6
Normalize = Literal["mean", "mean_std", "mean_population_std"]
"""What is done with a group's statistics: subtract the mean; also divide by the std with Bessel's correction and
`EPSILON`; or by the population's std without an epsilon, where it is not 0 (the formula of the paper's text)."""


def discounted_returns(rewards: Any, trajectory_ids: Ids, gamma: float) -> Any:
    """G_t = r_t + gamma * G_{t+1} of every step sample, [samples].

    Samples of one trajectory are its steps in order of appearance; trajectories may interleave.
    Source: ALGORITHM, section 2.
    """
    values, trajectories = as_floats(rewards), codes(trajectory_ids)
    check_lengths(rewards=values, trajectory_ids=trajectories)
    order = np.argsort(trajectories, kind="stable")
    ends = np.cumsum(np.bincount(trajectories)) - 1  # place in `order` of each trajectory's last step
    lengths = np.diff(ends, prepend=-1)
    returns = values[order]
    for back in range(1, int(lengths.max(initial=0))):  # all trajectories at once, from their ends
        here = ends[lengths > back] - back
        returns[here] += gamma * returns[here + 1]
    result = np.empty_like(returns)
    result[order] = returns
    return like_source(result, rewards)


def invalid_action_penalty(values: Any, is_valid: Any, penalty: float) -> Any:
    """`values` [samples] (scores or discounted returns) less `penalty` where the step's action was invalid.

    Source: ALGORITHM, section 2.
    """
    array, valid = as_floats(values), as_bools(is_valid)
    check_lengths(values=array, is_valid=valid)
    return like_source(array - penalty * ~valid, values)


def outcome_scores(won: Any, is_valid: Any, success_reward: float, invalid_action_penalty: float) -> Any:
    """Score S of every step sample, [samples] float32: R of its trajectory less that step's own penalty.

    `won` [samples] is whether the sample's trajectory succeeded. Source: ALGORITHM, section 2.
    """
    wins, valid = as_bools(won), as_bools(is_valid)
    check_lengths(won=wins, is_valid=valid)
    return like_source(success_reward * wins - invalid_action_penalty * ~valid, won)


def outcome_advantages(
    scores: Any,
    group_ids: Ids,
    trajectory_ids: Ids,
    *,
    baseline: Literal["step", "trajectory"],
    normalize: Normalize,
) -> Any:
    """A_ep of every step sample, [samples]: its score against the statistics of its group.

    `baseline` takes them over all step samples of the group, or over one mean score a trajectory. A group of one
    such value has mean 0 and std 1. Raises DataError for unequal lengths or unknown options.
    Source: ALGORITHM, section 2.
    """
    _check_choice("baseline", baseline, ("step", "trajectory"))
    _check_choice("normalize", normalize, get_args(Normalize))
    values, groups, trajectories = _grouped(scores, group_ids, trajectory_ids)
    if baseline == "step":
        statistics = group_statistics(values, groups)
    else:
        _, statistics = _trajectory_means(values, groups, trajectories)
    alone = statistics.count == 1
    mean = np.where(alone, 0.0, statistics.mean)
    scale = np.where(alone, 1.0, _scale(statistics, normalize))
    return like_source((values - mean[groups]) / scale[groups], scores)


def leave_one_out_advantages(scores: Any, group_ids: Ids, trajectory_ids: Ids) -> Any:
    """RLOO's advantage of every step sample, [samples]: its score less the mean over the group's other trajectories,
    each of which counts with the mean of its step samples' scores; alone in its group it keeps its score.

    Raises DataError for unequal lengths. Source: ALGORITHM, section 8.
    """
    values, groups, trajectories = _grouped(scores, group_ids, trajectory_ids)
    means, statistics = _trajectory_means(values, groups, trajectories)
    count, mean = statistics.count[groups], statistics.mean[groups]
    others = mean + (mean - means[trajectories]) / np.maximum(count - 1, 1)  # exact where all are equal
    return like_source(values - np.where(count == 1, 0.0, others), scores)


def tied_samples(outcomes: Any, group_ids: Ids, trajectory_ids: Ids) -> Any:
    """Whether each step sample's group has two or more trajectories with equal outcomes only, [samples].

    `outcomes` [samples] is the return of the sample's trajectory without any penalty, or whether it succeeded.
    Source: ALGORITHM, sections 2 and 8.
    """
    values, groups, trajectories = _grouped(outcomes, group_ids, trajectory_ids)
    tied, _ = _tied_groups(values, groups, trajectories)
    return like_source(tied[groups], outcomes)


def tie_rate(outcomes: Any, group_ids: Ids, trajectory_ids: Ids) -> float:
    """Share of groups with equal outcomes among the groups of two or more trajectories (0 if there are none).

    `outcomes` [samples] as in `tied_samples`. Source: ALGORITHM, section 2.
    """
    tied, several = _tied_groups(*_grouped(outcomes, group_ids, trajectory_ids))
    return float(tied[several].mean()) if several.any() else 0.0


def state_advantages(
    returns: Any,
    group_ids: Ids,
    states: Ids,
    *,
    normalize: Normalize,
    similarity: float | None = None,
) -> Any:
    """GiGPO's step advantage, [samples]: the discounted return against the other visits of the same state in the group.

    A state seen once gets 0. With `similarity` (0 to 1, texts only) a state joins, in order of appearance, the first
    cluster whose first member is at least so similar. Raises DataError on bad lengths or options.
    Source: ALGORITHM, section 2.
    """
    _check_choice("normalize", normalize, get_args(Normalize))
    values, groups = as_floats(returns), codes(group_ids)
    if similarity is not None:
        states = _similar_clusters(groups, _listed(states), similarity)
    state_groups = pair_codes(groups, codes(states))
    check_lengths(returns=values, group_ids=groups, states=state_groups)
    statistics = group_statistics(values, state_groups)
    scale = _scale(statistics, normalize)
    return like_source((values - statistics.mean[state_groups]) / scale[state_groups], returns)


def skill_advantages(
    skill_log_probs: Any,
    old_log_probs: Any,
    response_mask: Any,
    routed: Any,
    *,
    normalize: bool = False,
    clip: float | None = None,
) -> Any:
    """delta of every response token, [samples, tokens]: old policy with the skill in its prompt minus without, in nats.

    0 where `response_mask` [samples, tokens] or `routed` [samples] is false, whatever the log-probs hold there.
    `normalize` standardises over all tokens that carry the signal, then `clip` bounds it to [-clip, clip].
    Raises DataError for unequal shapes or a non-finite signal. Source: ALGORITHM, section 5.
    """
    skill, old, mask = as_floats(skill_log_probs), as_floats(old_log_probs), as_bools(response_mask)
    carries = mask & as_bools(routed)[:, None]
    return like_source(skill_deltas(skill, old, carries, normalize=normalize, clip=clip), skill_log_probs)


def skill_deltas(
    skill_log_probs: Float[Array, "*tokens"],
    old_log_probs: Float[Array, "*tokens"],
    carries: Bool[Array, "*tokens"],
    *,
    normalize: bool = False,
    clip: float | None = None,
) -> Float[Array, "*tokens"]:
    """`skill_advantages` of arrays of one shape: delta where a token `carries` the signal, 0 elsewhere."""
    if not skill_log_probs.shape == old_log_probs.shape == carries.shape:
        raise DataError(
            f"shapes differ: skill {skill_log_probs.shape}, old {old_log_probs.shape}, tokens {carries.shape}"
        )
    signal = skill_log_probs[carries].astype(np.float64) - old_log_probs[carries]
    if not np.isfinite(signal).all():
        raise DataError("skill or old log-probs are not finite on a routed response token")
    if normalize and signal.size:
        std = signal.std()
        signal = signal - signal.mean()
        if std > EPSILON:
            signal /= std + EPSILON
    if clip is not None:
        signal = np.clip(signal, -clip, clip)
    deltas = np.zeros(carries.shape)
    deltas[carries] = signal
    return like_source(deltas, skill_log_probs)


# --- groups -----------------------------------------------------------------------------------------------------


def codes(ids: Ids) -> Int[Array, " samples"]:
    """Each id's number, [samples], counted in order of first appearance."""
    seen: dict[Hashable, int] = {}
    listed = _listed(ids)
    return np.fromiter((seen.setdefault(i, len(seen)) for i in listed), np.int64, len(listed))


def pair_codes(first: Int[Array, " samples"], second: Int[Array, " samples"]) -> Int[Array, " samples"]:
    """Numbers, [samples], equal where both codes are equal."""
    check_lengths(first=first, second=second)
    if not first.size:
        return first
    return np.unique(first * (second.max() + 1) + second, return_inverse=True)[1]


@dataclass(frozen=True)
class GroupStatistics:
    """One number a group, [groups]; `std` has Bessel's correction, `variance` is the population's."""

    count: Int[Array, " groups"]
    mean: Float[Array, " groups"]
    std: Float[Array, " groups"]
    variance: Float[Array, " groups"]


def group_statistics(values: Float[Array, " samples"], groups: Int[Array, " samples"]) -> GroupStatistics:
    """Statistics of `values` in each group of `codes`. Equal values have exactly their own mean and deviation 0."""
    count = np.bincount(groups)
    smallest, largest = _extremes(values, groups, len(count))
    mean = np.bincount(groups, values, len(count)) / np.maximum(count, 1)
    mean = np.where(smallest == largest, smallest, mean)
    squares = np.bincount(groups, (values - mean[groups]) ** 2, len(count))
    return GroupStatistics(
        count=count,
        mean=mean,
        std=np.sqrt(squares / np.maximum(count - 1, 1)),
        variance=squares / np.maximum(count, 1),
    )


def _scale(statistics: GroupStatistics, normalize: Normalize) -> Float[Array, " groups"]:
    """What the distance from the group's mean is divided by, [groups]."""
    if normalize == "mean_std":
        return statistics.std + EPSILON
    std = np.sqrt(statistics.variance)
    return np.where(std == 0, 1.0, std) if normalize == "mean_population_std" else np.ones_like(std)


def _extremes(values: Array, groups: Array, n_groups: int) -> tuple[Array, Array]:
    smallest, largest = np.full(n_groups, np.inf), np.full(n_groups, -np.inf)
    np.minimum.at(smallest, groups, values)
    np.maximum.at(largest, groups, values)
    return smallest, largest


def _grouped(values: Any, group_ids: Ids, trajectory_ids: Ids) -> tuple[Array, Array, Array]:
    """The values, and the codes of each sample's group and of its trajectory in it. Raises DataError."""
    floats, groups = as_floats(values), codes(group_ids)
    trajectories = pair_codes(groups, codes(trajectory_ids))
    check_lengths(scores=floats, group_ids=groups, trajectory_ids=trajectories)
    return floats, groups, trajectories


def _trajectory_means(values: Array, groups: Array, trajectories: Array) -> tuple[Array, GroupStatistics]:
    """Each trajectory's mean value, [trajectories], and the statistics of these means in each group."""
    _, first = np.unique(trajectories, return_index=True)
    means = group_statistics(values, trajectories).mean
    return means, group_statistics(means, groups[first])


def _tied_groups(outcomes: Array, groups: Array, trajectories: Array) -> tuple[Array, Array]:
    """Of each group whether all outcomes are equal, and whether it has several trajectories; only then it can tie."""
    _, first = np.unique(trajectories, return_index=True)
    several = np.bincount(groups[first]) > 1
    smallest, largest = _extremes(outcomes, groups, len(several))
    return (smallest == largest) & several, several


def _similar_clusters(groups: Array, states: Sequence[Hashable], threshold: float) -> list[tuple[int, int]]:
    clusters: dict[int, list[SequenceMatcher[str]]] = {}
    cluster_of: dict[tuple[int, Hashable], tuple[int, int]] = {}
    members = list(zip(groups.tolist(), states, strict=True))
    for group, state in dict.fromkeys(members):  # equal texts always meet the same first cluster
        if not isinstance(state, str):
            raise DataError(f"similarity needs states that are texts, got {type(state).__name__}")
        here = clusters.setdefault(group, [])
        found = next((n for n, matcher in enumerate(here) if _is_similar(matcher, state, threshold)), len(here))
        if found == len(here):
            here.append(SequenceMatcher(None, "", state))
        cluster_of[group, state] = (group, found)
    return [cluster_of[member] for member in members]


def _is_similar(matcher: SequenceMatcher[str], state: str, threshold: float) -> bool:
    matcher.set_seq1(state)
    # the two quick ratios are upper bounds, far cheaper than the ratio itself
    return all(r() >= threshold for r in (matcher.real_quick_ratio, matcher.quick_ratio, matcher.ratio))


# --- numpy and torch --------------------------------------------------------------------------------------------


def _is_tensor(values: Any) -> bool:
    return "torch" in sys.modules and isinstance(values, sys.modules["torch"].Tensor)


def _listed(ids: Ids) -> Sequence[Hashable]:
    if isinstance(ids, np.ndarray) or _is_tensor(ids):
        return ids.tolist()  # pyright: ignore[reportAttributeAccessIssue]
    return ids if isinstance(ids, Sequence) else list(ids)


def _array(values: Any) -> Array:
    if _is_tensor(values):
        values = values.detach().cpu()
        return (values.double() if values.is_floating_point() else values).numpy()  # numpy knows no bfloat16
    return np.asarray(values)


def as_floats(values: Any) -> Float[Array, "..."]:
    return _array(values).astype(np.float64)


def as_bools(values: Any) -> Bool[Array, "..."]:
    return _array(values).astype(bool)


def like_source(result: Array, source: Any) -> Any:
    """`result` as `source`'s kind, number type (float32 unless a floating one) and device."""
    if _is_tensor(source):
        torch = sys.modules["torch"]
        dtype = source.dtype if source.is_floating_point() or result.dtype == bool else torch.float32
        return torch.from_numpy(result).to(device=source.device, dtype=torch.bool if result.dtype == bool else dtype)
    if result.dtype == bool:
        return result
    kind = source.dtype if isinstance(source, np.ndarray) and np.issubdtype(source.dtype, np.floating) else np.float32
    return result.astype(kind)


def check_lengths(**arrays: Array) -> None:
    if len({len(a) for a in arrays.values()}) > 1:
        raise DataError("lengths differ: " + ", ".join(f"{name} {len(a)}" for name, a in arrays.items()))


def _check_choice(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise DataError(f"{name}: {value!r} is none of {', '.join(allowed)}")
