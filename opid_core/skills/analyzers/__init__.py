"""Analyzers: from finished trajectories to skills. `hindsight` works by rules, `llm` asks an endpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from opid_core.config import AnalyzerConfig
from opid_core.learning.advantages import discounted_returns, invalid_action_penalty
from opid_core.skills.analyzers import hindsight
from opid_core.skills.replies import Analysis
from opid_core.skills.routing import critical_steps
from opid_core.trajectory import Trajectory, from_tables

if TYPE_CHECKING:
    from opid_core.skills.analyzers.llm import ReplyCache


def analyze(
    steps: pa.Table,
    trajectories: pa.Table,
    config: AnalyzerConfig,
    *,
    gamma: float,
    penalty: float,
    cache: ReplyCache | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    on_note: Callable[[str], None] | None = None,
) -> list[Analysis]:
    """Analyses of an iteration's trajectories by the configured backend, in the order of the `trajectories` table.

    A model's usable replies are kept in `cache` and taken from there. `on_progress` gets (done, total), `on_note` what
    people should know. Raises what the backend raises. Source: ALGORITHM, section 3.
    """
    returns = step_returns(steps, gamma, penalty)
    finished = from_tables(steps, trajectories, returns.tolist())
    critical = select_critical(steps, trajectories, returns, config)
    if config.backend == "hindsight":
        return _by_rules(finished, config, critical, on_progress)
    from opid_core.skills.analyzers import llm

    analyses = llm.analyze(finished, config, critical, cache=cache, on_progress=on_progress, on_note=on_note)
    if config.backend == "llm_then_hindsight":
        failed = {analysis.trajectory_id for analysis in analyses if analysis.failed}
        groups = {trajectory.group_id for trajectory in finished if trajectory.trajectory_id in failed}
        by_rules = _by_rules([t for t in finished if t.group_id in groups], config, critical)
        instead = {analysis.trajectory_id: analysis for analysis in by_rules}
        return [
            _instead(analysis, instead[analysis.trajectory_id]) if analysis.failed else analysis
            for analysis in analyses
        ]
    return analyses


def _by_rules(
    finished: Sequence[Trajectory],
    config: AnalyzerConfig,
    critical: Mapping[str, Sequence[int]],
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Analysis]:
    """Hindsight's analyses of whole groups, in the order of `finished`."""
    groups: dict[str, list[Trajectory]] = {}
    for trajectory in finished:
        groups.setdefault(trajectory.group_id, []).append(trajectory)
    found: dict[str, Analysis] = {}
    for done, group in enumerate(groups.values(), start=1):
        found.update((analysis.trajectory_id, analysis) for analysis in hindsight.analyze(group, config, critical))
        if on_progress:
            on_progress(done, len(groups))
    return [found[t.trajectory_id] for t in finished if t.trajectory_id in found]


def _instead(failed: Analysis, by_rules: Analysis) -> Analysis:
    """The model's failed analysis with the skills of hindsight; its reason stays."""
    return replace(
        failed,
        summary=by_rules.summary,
        episode_skill=by_rules.episode_skill,
        step_skills=by_rules.step_skills,
        analyzer=by_rules.analyzer,
        error=f"{failed.error}; hindsight: {by_rules.error}" if by_rules.failed else failed.error,
    )


def step_returns(steps: pa.Table, gamma: float, penalty: float) -> np.ndarray:
    """Discounted returns less the step's own penalty, [rows of `steps`], whatever the order of the rows."""
    order = np.lexsort((steps["step"].to_numpy(),))
    ids = np.asarray(steps["trajectory_id"].to_pylist(), dtype=object)
    returns = np.empty(steps.num_rows, dtype=np.float32)
    returns[order] = discounted_returns(steps["reward"].to_numpy()[order], ids[order], gamma)
    return invalid_action_penalty(returns, steps["is_valid"].to_pylist(), penalty)


def select_critical(
    steps: pa.Table, trajectories: pa.Table, returns: np.ndarray, config: AnalyzerConfig
) -> dict[str, list[int]]:
    """Critical steps by trajectory id, by the statistics selector; broken episodes take no part."""
    ended = zip(trajectories["trajectory_id"].to_pylist(), trajectories["outcome"].to_pylist(), strict=True)
    broken = {trajectory_id for trajectory_id, outcome in ended if outcome == "broken"}
    took_part = np.array([i not in broken for i in steps["trajectory_id"].to_pylist()], dtype=bool)
    order = np.lexsort((steps["step"].to_numpy(),))  # the selector counts a trajectory's steps in order of appearance
    kept = order[took_part[order]]
    rows = steps.select(["observation", "group_id", "trajectory_id", "step"]).take(kept)
    ids = rows["trajectory_id"].to_pylist()
    chosen = critical_steps(
        returns[kept],
        rows["observation"].to_pylist(),
        rows["group_id"].to_pylist(),
        ids,
        min_group_size=config.selector_min_group_size,
        var_quantile=config.selector_var_quantile,
        top_k=config.selector_top_k,
    )
    critical: dict[str, list[int]] = {}
    for trajectory_id, step, is_critical in zip(ids, rows["step"].to_pylist(), chosen, strict=True):
        if is_critical:
            critical.setdefault(trajectory_id, []).append(step)
    return critical
