"""Numbers a person looks at: success rates with their intervals, comparisons of two policies, and the metrics of an
iteration. Methods that were run with several seeds are compared in `opid_core.comparison`."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from envs.base import is_offered
from opid_core.samples import Ragged

LEVEL = 0.95
ALIKE = 1e-12  # what sums of equal numbers differ by, in rounding


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95% interval."""

    mean: float
    low: float
    high: float


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
    score: Estimate | None = None
    """Mean score of the episodes (WebShop's r), where the environment gives one."""


def panel_name(config: Mapping[str, Any]) -> str:
    """What to call the evaluation's panel, by the config as plain data: tasks that are trained on are not held out."""
    train, evaluated = (config.get("environment", {}).get("train_split"), config.get("evaluation", {}).get("split"))
    return "panel of training tasks" if train and train == evaluated else "held-out panel"


def wilson_interval(successes: float, trials: float) -> tuple[float, float]:
    """Wilson's score interval of a proportion, 95%. No trials: (0, 1)."""
    if trials == 0:
        return 0.0, 1.0
    z = 1.959964  # the normal distribution has 95% within so many standard deviations of its mean
    share, z2 = successes / trials, z * z
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = z / (1 + z2 / trials) * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials * trials))
    return max(0.0, centre - half), min(1.0, centre + half)


def independent_trials(wins: Collection[Sequence[bool]]) -> float:
    """How many independent episodes tell as much about the share of wins as these, of which those of one task (one
    sequence) go together: p (1 - p) over the variance of the share, with tasks as what was drawn. Source: Kish,
    Survey Sampling, 1965 (the effective sample size of a cluster sample).

    One episode a task: the number of episodes, which is also its upper limit. All won or none, or one task, of which
    nothing tells how much tasks differ: the number of tasks.
    """
    episodes, tasks = sum(map(len, wins)), len(wins)
    share = sum(map(sum, wins)) / episodes if episodes else 0.0
    if tasks < 2 or tasks == episodes or share in (0.0, 1.0):
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
    """`success_rate` of a `trajectories` or `evaluations` table, with its `mean_score`."""
    rate = success_rate(*(table.column(name).to_pylist() for name in ("outcome", "task_type", "task_id")))
    return replace(rate, score=mean_score(table))


def mean_score(table: pa.Table) -> Estimate | None:
    """The mean score of the episodes of a `trajectories` or `evaluations` table, with its 95% interval by the t
    distribution over tasks within 0 and 1 (0 to 1 from a single task). Broken episodes are left out; None where no
    episode has a score."""
    scores = [scores for scores in scores_by_task(table).values() if scores]
    if not scores:
        return None
    estimate = share_interval([sum(of_task) for of_task in scores], [len(of_task) for of_task in scores])
    return Estimate(estimate.mean, 0.0, 1.0) if math.isnan(estimate.low) else estimate


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


def scores_by_task(table: pa.Table) -> dict[str, list[float]]:
    """The known scores of each task's episodes, in the order of the table; broken episodes are left out."""
    scores: dict[str, list[float]] = {}
    columns = (table.column(name).to_pylist() for name in ("task_id", "outcome", "score"))
    for task_id, outcome, score in zip(*columns, strict=True):
        of_task = scores.setdefault(task_id, [])
        if outcome != "broken" and score is not None:
            of_task.append(score)
    return scores


def score_metrics(name: str, score: Estimate | None) -> dict[str, float]:
    """The score as metrics called `name`, `name`_low and `name`_high; none where there is none."""
    return {} if score is None else {name: score.mean, f"{name}_low": score.low, f"{name}_high": score.high}


def success_metrics(name: str, success: SuccessRate) -> dict[str, float]:
    """Success with its interval, and the score where there is one, as metrics called `name`/...."""
    return {
        f"{name}/success_micro": success.micro,
        f"{name}/success_macro": success.macro,
        f"{name}/success_low": success.low,
        f"{name}/success_high": success.high,
        f"{name}/episodes": float(success.episodes),
        **score_metrics(f"{name}/score", success.score),
    }


def by_split(evaluations: pa.Table) -> dict[str, pa.Table]:
    """The rows of an `evaluations` table by split, in the order of the table."""
    return rows_by(evaluations, "split")


def by_temperature(evaluations: pa.Table) -> dict[float, pa.Table]:
    """The rows of an `evaluations` table that are of its first split, by sampling temperature, coldest first."""
    evaluations = next(iter(by_split(evaluations).values()), evaluations)
    return {float(f"{t:g}"): rows for t, rows in sorted(rows_by(evaluations, "temperature").items())}


def rows_by(table: pa.Table, column: str) -> dict[Any, pa.Table]:
    """The rows of each value of `column`, in the order in which the values appear."""
    # Arrow's own scalars: to make one of a Python value imports pandas, which takes a command half a second.
    values = pc.unique(table[column])  # pyright: ignore[reportAttributeAccessIssue]
    return {value.as_py(): table.filter(pc.equal(table[column], value)) for value in values}  # pyright: ignore[reportAttributeAccessIssue]


@dataclass(frozen=True)
class Paired:
    """Tasks that both policies played, by who won them more often, and the p-value of the exact sign test."""

    both: int
    """Won by both, as often."""
    first_more: int
    second_more: int
    neither: int
    p_value: float
    """Chance of a split of the tasks that differ at least as uneven, were both policies equally good (two-sided)."""


def sign_test(first_won: Sequence[float], second_won: Sequence[float]) -> Paired:
    """Compare two policies task by task, each with the share of its episodes that were won. Under the null hypothesis
    `first_more` of the tasks that differ is binomial with probability 1/2; no such task: p = 1. With one episode a task
    this is McNemar's test (1947) in its exact form.
    """
    from scipy.stats import binomtest

    pairs = list(zip(first_won, second_won, strict=True))
    first_more, second_more = sum(a > b for a, b in pairs), sum(a < b for a, b in pairs)
    differing = first_more + second_more
    return Paired(
        both=sum(a == b > 0 for a, b in pairs),
        first_more=first_more,
        second_more=second_more,
        neither=sum(a == b == 0 for a, b in pairs),
        p_value=float(binomtest(first_more, differing).pvalue) if differing else 1.0,
    )


def same_tasks(first: pa.Table, second: pa.Table) -> Paired | None:
    """The sign test of `wins_of_same_tasks`; None where the tasks are not the same."""
    wins = wins_of_same_tasks(first, second)
    return None if wins is None else sign_test(*wins)


def wins_of_same_tasks(first: pa.Table, second: pa.Table) -> tuple[list[float], list[float]] | None:
    """Of two `evaluations` tables of one temperature the share of each task's episodes that were won, task by task; one
    that only broke on either side is left out. None where the tasks are not the same."""
    one, other = wins_by_task(first), wins_by_task(second)
    if one.keys() != other.keys():
        return None
    tasks = [task for task in one if one[task] and other[task]]
    return [fmean(one[task]) for task in tasks], [fmean(other[task]) for task in tasks]


def rollout_metrics(steps: pa.Table, trajectories: pa.Table) -> dict[str, float]:
    """Success, return, lengths and action quality of an iteration's rollouts."""
    success = table_success(trajectories)
    offered = zip(steps.column("action").to_pylist(), steps.column("admissible_actions").to_pylist(), strict=True)
    on_offer = [is_offered(action, among) for action, among in offered if among]  # some worlds list no actions
    metrics = {
        **success_metrics("rollout", success),
        "rollout/return": _mean(trajectories.column("return").to_numpy()),
        "rollout/steps": _mean(trajectories.column("steps").to_numpy()),
        "rollout/response_tokens": _mean(Ragged.from_arrow(steps.column("response_ids")).lengths),
        "rollout/prompt_tokens": _mean(Ragged.from_arrow(steps.column("prompt_ids")).lengths),
        "rollout/valid_actions": _mean(steps.column("is_valid").to_numpy()),
        "rollout/admissible_actions": sum(on_offer) / len(on_offer) if on_offer else math.nan,
        "rollout/prompts_cut": float((steps.column("history_dropped").to_numpy() > 0).sum()),
        "rollout/broken": float(trajectories.column("outcome").to_pylist().count("broken")),
    }
    return {**metrics, **{f"rollout/success/{name}": share for name, share in success.per_type.items()}}


def skill_kinds(skills: pa.Table) -> dict[str, str]:
    """`own` or `other` by the id of each step skill whose reason says so: whether it names what the step itself did."""
    columns = (skills.column(name).to_pylist() for name in ("skill_id", "reason"))
    kinds = {skill_id: json.loads(reason).get("kind") for skill_id, reason in zip(*columns, strict=True) if reason}
    return {skill_id: kind for skill_id, kind in kinds.items() if kind}


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else math.nan


def mean_interval(sums: Sequence[float], counts: Sequence[float]) -> Estimate:
    """The mean of what `counts` counts, of which each cluster has a sum, with its 95% interval by the t distribution
    over clusters; no interval (nan) from fewer than two, or where they are all alike, which does not tell how much
    others would differ. Source: Cochran, Sampling Techniques, 1977 (ratio estimate).
    """
    from scipy.stats import t

    values, sizes = np.asarray(sums, np.float64), np.asarray(counts, np.float64)
    if not sizes.sum():
        return Estimate(math.nan, math.nan, math.nan)
    mean, clusters = float(values.sum() / sizes.sum()), len(sizes)
    if clusters < 2:
        return Estimate(mean, math.nan, math.nan)
    error = math.sqrt(clusters / (clusters - 1) * ((values - mean * sizes) ** 2).sum()) / sizes.sum()
    half = float(t.ppf((1 + LEVEL) / 2, clusters - 1) * error) if error > ALIKE else math.nan
    return Estimate(mean, mean - half, mean + half)


def share_interval(sums: Sequence[float], counts: Sequence[float]) -> Estimate:
    """`mean_interval` of what lies between 0 and 1. Of two clusters or more that are all alike Wilson's, of as many
    trials as clusters."""
    estimate = mean_interval(sums, counts)
    if len(counts) > 1 and math.isnan(estimate.low) and not math.isnan(estimate.mean):
        return Estimate(estimate.mean, *wilson_interval(estimate.mean * len(counts), len(counts)))
    return Estimate(estimate.mean, *np.clip([estimate.low, estimate.high], 0.0, 1.0).tolist())
