"""Numbers a person looks at: success rates with their intervals, and the metrics of an iteration."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from envs.base import is_offered


@dataclass(frozen=True)
class SuccessRate:
    """Share of won episodes: `micro` over episodes, `macro` over task types, and the 95% interval of `micro`."""

    episodes: int
    micro: float
    macro: float
    low: float
    high: float
    per_type: dict[str, float]
    episodes_per_type: dict[str, int]


def wilson_interval(successes: float, trials: float, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval of a proportion (95% by default). No trials: (0, 1)."""
    if trials == 0:
        return 0.0, 1.0
    share, z2 = successes / trials, z * z
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = z / (1 + z2 / trials) * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials * trials))
    return max(0.0, centre - half), min(1.0, centre + half)


def independent_trials(wins: Collection[Sequence[bool]]) -> float:
    """How many independent episodes tell as much about the share of wins as these, of which those of one task (one
    sequence) go together: p (1 - p) over the variance of the share, with tasks as what was drawn. Source: Kish,
    Survey Sampling, 1965 (the effective sample size of a cluster sample).

    One episode a task: the number of episodes, which is also its upper limit. All won or none: the number of tasks.
    """
    episodes, tasks = sum(map(len, wins)), len(wins)
    share = sum(map(sum, wins)) / episodes if episodes else 0.0
    if tasks == episodes or share in (0.0, 1.0):
        return tasks
    variance = sum((sum(won) - share * len(won)) ** 2 for won in wins) / episodes**2
    return min(episodes, share * (1 - share) / variance) if variance else episodes


def success_rate(outcomes: Sequence[str], task_types: Sequence[str], task_ids: Sequence[str]) -> SuccessRate:
    """Success of episodes; broken ones (the environment's fault) are left out. The interval is Wilson's, for as many
    trials as the episodes are worth when some share a task."""
    wins: dict[str, list[bool]] = {}
    of_task: dict[str, list[bool]] = {}
    for outcome, task_type, task_id in zip(outcomes, task_types, task_ids, strict=True):
        if outcome != "broken":
            wins.setdefault(task_type, []).append(outcome == "success")
            of_task.setdefault(task_id, []).append(outcome == "success")
    total, won = sum(map(len, wins.values())), sum(map(sum, wins.values()))
    per_type = {task_type: sum(w) / len(w) for task_type, w in sorted(wins.items())}
    trials = independent_trials(of_task.values())
    low, high = wilson_interval(trials * won / total if total else 0, trials)
    return SuccessRate(
        episodes=total,
        micro=won / total if total else math.nan,
        macro=sum(per_type.values()) / len(per_type) if per_type else math.nan,
        low=low,
        high=high,
        per_type=per_type,
        episodes_per_type={task_type: len(wins[task_type]) for task_type in per_type},
    )


def table_success(table: pa.Table) -> SuccessRate:
    """`success_rate` of a `trajectories` or `evaluations` table."""
    return success_rate(*(table.column(name).to_pylist() for name in ("outcome", "task_type", "task_id")))


def wins_by_task(evaluations: pa.Table) -> dict[str, list[bool]]:
    """Which episodes of each task were won, in the order of the table; broken ones are left out."""
    wins: dict[str, list[bool]] = {}
    for task_id, outcome in zip(
        *(evaluations.column(name).to_pylist() for name in ("task_id", "outcome")), strict=True
    ):
        won = wins.setdefault(task_id, [])
        if outcome != "broken":
            won.append(outcome == "success")
    return wins


def by_temperature(evaluations: pa.Table) -> dict[float, pa.Table]:
    """The rows of an `evaluations` table by sampling temperature, coldest first."""
    temperatures = evaluations.column("temperature").to_numpy()
    return {float(f"{t:g}"): evaluations.filter(pa.array(temperatures == t)) for t in np.unique(temperatures)}


def rollout_metrics(steps: pa.Table, trajectories: pa.Table) -> dict[str, float]:
    """Success, return, lengths and action quality of an iteration's rollouts."""
    success = table_success(trajectories)
    offered = steps.column("admissible_actions").to_pylist()
    on_offer = [is_offered(*pair) for pair in zip(steps.column("action").to_pylist(), offered, strict=True)]
    metrics = {
        "rollout/success_micro": success.micro,
        "rollout/success_macro": success.macro,
        "rollout/return": _mean(trajectories, "return"),
        "rollout/steps": _mean(trajectories, "steps"),
        "rollout/response_tokens": _mean_length(steps, "response_ids"),
        "rollout/prompt_tokens": _mean_length(steps, "prompt_ids"),
        "rollout/valid_actions": _mean(steps, "is_valid"),
        "rollout/admissible_actions": sum(on_offer) / len(on_offer) if on_offer else math.nan,
        "rollout/prompts_cut": float((steps.column("history_dropped").to_numpy() > 0).sum()),
        "rollout/broken": float(trajectories.column("outcome").to_pylist().count("broken")),
    }
    return {**metrics, **{f"rollout/success/{name}": share for name, share in success.per_type.items()}}


def skill_metrics(trajectories: pa.Table, skills: pa.Table, routes: pa.Table) -> dict[str, float]:
    """How many trajectories have skills, how many analyses failed, how long skills are, and what the steps were routed
    to."""
    kinds = skills.column("kind").to_pylist()
    route_names = routes.column("route").to_pylist()
    count = max(1, trajectories.num_rows)
    chars = [len(t) for t, kind in zip(skills.column("text").to_pylist(), kinds, strict=True) if kind != "failed"]
    shares = {name: route_names.count(name) / max(1, len(route_names)) for name in ("step", "episode", "none")}
    return {
        "skills/coverage": kinds.count("episode") / count,
        "skills/failed": kinds.count("failed") / count,
        "skills/step_skills": kinds.count("step") / count,
        "skills/chars": sum(chars) / len(chars) if chars else math.nan,
        **{f"routes/{name}": share for name, share in shares.items()},
        "routes/added": (routes.num_rows - routes.column("added_skill_id").null_count) / max(1, routes.num_rows),
    }


def _mean(table: pa.Table, column: str) -> float:
    values = table.column(column).to_pylist()
    return float(np.mean(values)) if values else math.nan


def _mean_length(table: pa.Table, column: str) -> float:
    lengths = [len(ids) for ids in table.column(column).to_pylist()]
    return float(np.mean(lengths)) if lengths else math.nan
