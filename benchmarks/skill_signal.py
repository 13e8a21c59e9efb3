"""Does a campaign's skill signal raise the expert's actions? `python -m benchmarks.skill_signal CAMPAIGN`.

The expert is asked at every step of every stored trajectory what it would do, having seen what the policy saw. A table
a route holds delta (log-prob of the whole sampled response with the skill in the prompt less that without, in nats) of
the steps whose action is the expert's against that of the others.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from envs.base import Environment, Task, make, result_of, validate_options
from infra.store import find_campaign, manifests, read_config, read_table
from opid_core.config import build_config
from opid_core.errors import OpidError
from opid_core.samples import Samples
from opid_core.warm_start import require_expert


@dataclass(frozen=True)
class SignalQuality:
    """How delta tells steps whose action is the expert's from other steps; nan for a share of no steps."""

    expert_steps: int
    other_steps: int
    expert_raised: float
    """Share of the expert's steps with delta > 0."""
    other_raised: float
    """Share of the other steps with delta > 0."""
    auc: float
    """Area under the ROC curve: the chance that one of the expert's steps has a larger delta than another step (ties
    count half). 0.5 is no signal."""


def signal_quality(delta: Float[np.ndarray, " steps"], is_experts: Bool[np.ndarray, " steps"]) -> SignalQuality:
    """The quality of `delta` as a signal for `is_experts`."""
    from scipy.stats import mannwhitneyu

    experts, others = delta[is_experts], delta[~is_experts]
    raised = [float((part > 0).mean()) if len(part) else float("nan") for part in (experts, others)]
    pairs = len(experts) * len(others)
    auc = float(mannwhitneyu(experts, others).statistic) / pairs if pairs else float("nan")
    return SignalQuality(len(experts), len(others), raised[0], raised[1], auc)


def auc_interval(
    delta: Float[np.ndarray, " steps"],
    is_experts: Bool[np.ndarray, " steps"],
    groups: Sequence[str],
    *,
    draws: int = 1000,
) -> tuple[float, float]:
    """The 95% interval of the AUC: percentiles of a bootstrap that draws groups, since what a group's episodes do goes
    together. (nan, nan) where no draw has steps of both kinds."""
    values, value = np.unique(delta, return_inverse=True)
    names, group = np.unique(groups, return_inverse=True)
    times = np.random.default_rng(0).multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws)
    found = []
    for of_draw in times:
        experts, others = (np.bincount(value, of_draw[group] * part, len(values)) for part in (is_experts, ~is_experts))
        if pairs := experts.sum() * others.sum():
            found.append((experts * (np.cumsum(others) - others / 2)).sum() / pairs)
    low, high = np.quantile(found, [0.025, 0.975]) if found else (np.nan, np.nan)
    return float(low), float(high)


def expert_agrees(environment: Environment, task: Task, trajectory: Samples) -> list[bool] | None:
    """Of each step of one trajectory (in order) whether the expert, having seen the same, would have done the same;
    None where the expert does not know this task. Raises ConfigError where there is no expert."""
    expert_of, agrees = require_expert(environment), []
    offered, actions, seen = (trajectory.texts(name) for name in ("admissible_actions", "action", "observation"))
    try:
        expert = expert_of.expert(result_of(environment.reset(task)))
        for step, action in enumerate(actions):
            agrees.append(expert.decide(offered[step]).action == action)
            if step + 1 < len(actions):
                expert.observe(action, seen[step + 1])
    except OpidError:
        return None
    return agrees


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.skill_signal", description=__doc__)
    parser.add_argument("campaigns", nargs="+")
    parser.add_argument("--root", default="runs")
    given = parser.parse_args()
    print("| campaign | route | expert's actions | others | delta > 0: expert's | delta > 0: others | AUC (95%) |")
    print("|---|---|---|---|---|---|---|")
    together = []
    for name in given.campaigns:
        steps = list(_scored_steps(given.root, name))
        _print(name, steps)
        together += steps
    if len(given.campaigns) > 1:
        _print("all", together)


def _print(name: str, steps: Sequence[tuple[str, str, float, bool]]) -> None:
    for route in sorted({route for route, *_ in steps}):
        groups, delta, is_experts = zip(*(step[1:] for step in steps if step[0] == route), strict=True)
        quality = signal_quality(np.array(delta), np.array(is_experts, bool))
        low, high = auc_interval(np.array(delta), np.array(is_experts, bool), groups)
        print(
            f"| {name} | {route} | {quality.expert_steps} | {quality.other_steps} | {quality.expert_raised:.1%} "
            f"| {quality.other_raised:.1%} | {quality.auc:.3f} ({low:.3f} to {high:.3f}) |",
            flush=True,
        )


def _scored_steps(root: str, campaign: str) -> Iterator[tuple[str, str, float, bool]]:
    """(route, group, delta, whether the action is the expert's) of every step that was scored under a skill."""
    store = find_campaign(root, campaign)
    config = build_config(read_config(store), campaign)
    environment = make(config.environment.name, validate_options(config.environment.name, config.environment.options))
    tasks = {task.task_id: task for task in environment.tasks(config.environment.train_split)}
    for manifest in manifests(store)[1:]:
        names = ("steps", "trajectories", "routes", "scores")
        samples = Samples.from_tables(*(read_table(store, manifest.tables[name]) for name in names))
        for rows in samples.by_trajectory().values():
            trajectory = samples.select(rows)
            agrees = expert_agrees(environment, tasks[trajectory.texts("task_id")[0]], trajectory)
            old, skill = (trajectory.tokens(name) for name in ("old_log_probs", "skill_log_probs"))
            group = f"{campaign}/{trajectory.group_ids[0]}"
            routes, is_scored = trajectory.texts("route"), trajectory.has("skill_log_probs")
            for step, same in enumerate(agrees or []):
                if is_scored[step]:
                    yield routes[step], group, float(skill[step].sum(dtype=float) - old[step].sum(dtype=float)), same


if __name__ == "__main__":
    main()
