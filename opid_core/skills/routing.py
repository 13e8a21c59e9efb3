"""Which steps are critical, and which skill a step is scored under (ALGORITHM, sections 3 and 4)."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from opid_core import schema
from opid_core.config import MethodConfig
from opid_core.learning import methods
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
from opid_core.seeds import derive


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
        # best first inside each trajectory; the sample's place in the input stands for its step index
        chosen = chosen[np.lexsort((-chosen, -scores[chosen], trajectories[chosen]))]
        owners = trajectories[chosen]
        rank = np.arange(len(chosen)) - np.searchsorted(owners, owners)
        critical[chosen[rank < top_k]] = True
    return like_source(critical, returns)


def route(
    episode_skill: str | None,
    step_skills: Mapping[int, str],
    step: int,
    *,
    lambda_episode: float,
    lambda_step: float,
) -> tuple[str, str]:
    """(route, reason) of one step of a trajectory: `step`, `episode` or `none`, critical first.

    `episode_skill` is None or blank, and `step_skills` (by 0-based step) empty, where the trajectory has no skills. A
    weight of 0 turns its kind of skill off. Source: ALGORITHM, section 4.
    """
    has_step = bool(step_skills.get(step, "").strip())
    has_episode = bool((episode_skill or "").strip())
    if has_step and lambda_step > 0:
        return "step", "critical step"
    if has_episode and lambda_episode > 0:
        return "episode", "step skills are off" if has_step else "no skill for this step"
    if not has_step and not has_episode:
        return "none", "no skill for this step" if step_skills else "no skills for this trajectory"
    return "none", "episode skills are off" if has_episode else "step skills are off"


def route_table(steps: pa.Table, skills: pa.Table, method: MethodConfig, seed: int) -> pa.Table:
    """The `routes` table: one row a row of `steps`, in its order, with the skill row that is injected.

    A method that uses no skills routes nothing. `seed` draws the steps of `method.routing: random`.
    Source: ALGORITHM, section 4.
    """
    by_trajectory: dict[str, dict[int | None, dict[str, Any]]] = {}
    for skill in skills.to_pylist():
        if skill["kind"] != "failed":  # a trajectory whose analysis failed has no skills
            by_trajectory.setdefault(skill["trajectory_id"], {})[skill["step"]] = skill
    ids, numbers = steps["trajectory_id"].to_pylist(), steps["step"].to_pylist()
    if method.routing == "random":
        by_trajectory = _at_random_steps(by_trajectory, ids, numbers, seed)
    lambda_episode, lambda_step = _weights(method)
    uses_skills = methods.get(method.name).uses_skills
    rows = []
    for trajectory_id, step in zip(ids, numbers, strict=True):
        own = by_trajectory.get(trajectory_id, {})
        if not uses_skills:
            name, reason = "none", "the method uses no skills"
        else:
            episode = own[None]["text"] if None in own else None
            at_step = {number: row["text"] for number, row in own.items() if number is not None}
            name, reason = route(episode, at_step, step, lambda_episode=lambda_episode, lambda_step=lambda_step)
        chosen = own[step] if name == "step" else own[None] if name == "episode" else None
        if method.routing == "random" and chosen and name == "step":
            reason = f"random step, its skill is step {chosen['step']}'s"
        both = method.routing == "additive" and name == "step" and lambda_episode > 0 and own.get(None, {}).get("text")
        rows.append(
            {
                "trajectory_id": trajectory_id,
                "step": step,
                "route": name,
                "skill_id": chosen["skill_id"] if chosen else None,
                "added_skill_id": own[None]["skill_id"] if both else None,
                "reason": f"{reason}, and the episode's" if both else reason,
            }
        )
    return schema.from_rows("routes", rows)


def _weights(method: MethodConfig) -> tuple[float, float]:
    """Weights of episode and step skills, of which only 0 matters: only OPID weighs them, routing may turn one off."""
    episode, step = (method.lambda_episode, method.lambda_step) if method.name == "opid" else (1.0, 1.0)
    return 0.0 if method.routing == "step_only" else episode, 0.0 if method.routing == "episode_only" else step


def _at_random_steps(
    by_trajectory: Mapping[str, dict[int | None, dict[str, Any]]],
    trajectory_ids: Sequence[str],
    steps: Sequence[int],
    seed: int,
) -> dict[str, dict[int | None, dict[str, Any]]]:
    """Each trajectory's skills with its step skills at as many of its steps, drawn at random without replacement."""
    steps_of: dict[str, list[int]] = {}
    for trajectory_id, step in zip(trajectory_ids, steps, strict=True):
        steps_of.setdefault(trajectory_id, []).append(step)
    moved = {}
    for trajectory_id, own in by_trajectory.items():
        of_steps = [own[step] for step in sorted(step for step in own if step is not None)]
        drawn = random.Random(derive(seed, trajectory_id)).sample(sorted(steps_of[trajectory_id]), len(of_steps))
        of_episode = {None: own[None]} if None in own else {}
        moved[trajectory_id] = {**of_episode, **dict(zip(drawn, of_steps, strict=True))}
    return moved
