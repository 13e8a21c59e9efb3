"""Does a campaign's skill signal raise the expert's actions? `python -m benchmarks.skill_signal CAMPAIGN`.

The expert is asked at every step of every stored trajectory what it would do, having seen what the policy saw. The
table holds delta (log-prob of the whole sampled response with the skill in the prompt less that without, in nats) of
the steps whose action is the expert's against that of the others, by route and kind of skill, and for corrected steps
also delta graded by what the group's map tells.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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
    areas = []
    for of_draw in times:
        experts, others = (np.bincount(value, of_draw[group] * part, len(values)) for part in (is_experts, ~is_experts))
        if pairs := experts.sum() * others.sum():
            areas.append((experts * (np.cumsum(others) - others / 2)).sum() / pairs)
    low, high = np.quantile(areas, [0.025, 0.975]) if areas else (np.nan, np.nan)
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


@dataclass(frozen=True)
class ScoredStep:
    """A step that was scored under a skill."""

    group: str
    route: str
    delta: float
    is_experts: bool
    kind: str | None
    """`own` or `other`, of a step skill of the group's map."""
    longer: int
    """By how many steps what was done is longer than the shortest way that siblings showed; 0 where nobody says."""
    siblings: int
    """How many other trajectories were in the step's state."""


PARTS: dict[str, Callable[[ScoredStep], float | None]] = {
    "episode": lambda step: step.delta if step.route == "episode" else None,
    "step": lambda step: step.delta if step.route == "step" else None,
    "step, own": lambda step: step.delta if step.kind == "own" else None,
    "step, other": lambda step: step.delta if step.kind == "other" else None,
    "step, other; times how much longer": lambda step: step.delta * step.longer if step.kind == "other" else None,
    "step, other; times how many siblings": lambda step: step.delta * step.siblings if step.kind == "other" else None,
}
"""What is held against the expert: of which steps, and delta as it is or graded by what the map tells."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.skill_signal", description=__doc__)
    parser.add_argument("campaigns", nargs="+")
    parser.add_argument("--root", default="runs")
    given = parser.parse_args()
    print("| campaign | steps | expert's actions | others | delta > 0: expert's | delta > 0: others | AUC (95%) |")
    print("|---|---|---|---|---|---|---|")
    together = []
    for name in given.campaigns:
        steps = list(_scored_steps(given.root, name))
        _print(name, steps)
        together += steps
    if len(given.campaigns) > 1:
        _print("all", together)


def _print(name: str, steps: Sequence[ScoredStep]) -> None:
    for part, value in PARTS.items():
        of_part = [(step, number) for step in steps if (number := value(step)) is not None]
        if not of_part:
            continue
        is_experts, delta = np.array([s.is_experts for s, _ in of_part]), np.array([number for _, number in of_part])
        quality = signal_quality(delta, is_experts)
        low, high = auc_interval(delta, is_experts, [step.group for step, _ in of_part])
        print(
            f"| {name} | {part} | {quality.expert_steps} | {quality.other_steps} | {quality.expert_raised:.1%} "
            f"| {quality.other_raised:.1%} | {quality.auc:.3f} ({low:.3f} to {high:.3f}) |",
            flush=True,
        )


def _scored_steps(root: str, campaign: str) -> Iterator[ScoredStep]:
    store = find_campaign(root, campaign)
    config = build_config(read_config(store), campaign)
    environment = make(config.environment.name, validate_options(config.environment.name, config.environment.options))
    tasks = {task.task_id: task for task in environment.tasks(config.environment.train_split)}
    for manifest in manifests(store)[1:]:
        names = ("steps", "trajectories", "routes", "scores")
        samples = Samples.from_tables(*(read_table(store, manifest.tables[name]) for name in names))
        skills = read_table(store, manifest.tables["skills"])
        reasons = dict(zip(*(skills.column(name).to_pylist() for name in ("skill_id", "reason")), strict=True))
        for rows in samples.by_trajectory().values():
            trajectory = samples.select(rows)
            agrees = expert_agrees(environment, tasks[trajectory.texts("task_id")[0]], trajectory)
            old, skill = (trajectory.tokens(name) for name in ("old_log_probs", "skill_log_probs"))
            routes, skill_ids = trajectory.texts("route"), trajectory.texts("skill_id")
            for step, same in enumerate(agrees or []):
                if trajectory.has("skill_log_probs")[step]:
                    reason = json.loads(reasons.get(skill_ids[step]) or "{}")
                    yield ScoredStep(
                        group=f"{campaign}/{trajectory.group_ids[0]}",
                        route=routes[step],
                        delta=float(skill[step].sum(dtype=float) - old[step].sum(dtype=float)),
                        is_experts=same,
                        kind=reason.get("kind"),
                        longer=_longer(reason),
                        siblings=reason.get("siblings", 0),
                    )


LOST_AFTER = 20
"""A step after which nobody won counts as so many steps longer: more than any way of a small room."""


def _longer(reason: Mapping[str, Any]) -> int:
    left, after = reason.get("left"), reason.get("left_after")
    return 0 if left is None else LOST_AFTER if after is None else after + 1 - left


if __name__ == "__main__":
    main()
