"""Analyzers: from finished trajectories to skills. `hindsight` works by rules, `llm` asks an endpoint, and a user's own
is a function (docs/analyzer.md)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float32

from envs.base import ActionWords
from opid_core.config import AnalyzerConfig
from opid_core.errors import DataError
from opid_core.learning.advantages import discounted_returns, invalid_action_penalty
from opid_core.samples import Samples
from opid_core.sections import imported
from opid_core.skills.analyzers import group_map, hindsight
from opid_core.skills.replies import Analysis, clean_skill, select_step_skills
from opid_core.skills.selector import critical_steps

if TYPE_CHECKING:
    from opid_core.skills.analyzers.llm import ReplyCache


class Analyzer(Protocol):
    """A user's own analyzer, `analyzer.backend: module:name`."""

    def __call__(self, samples: Samples, config: AnalyzerConfig) -> Sequence[Analysis]:
        """Analyses of the trajectories of an iteration. `samples` have three columns beside those of the tables `steps`
        and `trajectories`: `analyzed` (whether skills of their trajectory are wanted), `discounted_return` (without
        the penalty of malformed responses) and `critical` (by the statistics selector)."""
        ...


def analyze(
    samples: Samples,
    config: AnalyzerConfig,
    words: ActionWords,
    *,
    gamma: float,
    penalty: float,
    cache: ReplyCache | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    on_note: Callable[[str], None] = lambda note: None,
) -> list[Analysis]:
    """One analysis by the configured backend of each trajectory that `is_analyzed`, in the order of `samples`.

    `words` are the environment's (`envs.base.action_words_of`). A model's usable replies are kept in `cache` and taken
    from there. `on_progress` gets (done, total), `on_note` what people should know. Raises what the backend raises.
    Source: ALGORITHM, section 3.
    """
    returns = step_returns(samples, gamma, penalty)
    samples = samples.with_columns(
        analyzed=is_analyzed(samples, config),
        discounted_return=step_returns(samples, gamma, penalty=0.0),  # as the released code tells the analyzer
        critical=select_critical(samples, returns, config),
    )
    if config.asks_model and config.llm.show_group:
        samples = samples.with_columns(group_map=group_map.as_json(samples, words))
    if ":" in config.backend:
        return _by_users_function(samples, config)
    if config.backend == "hindsight":
        return hindsight.analyze(samples, config, words, on_progress)
    from opid_core.skills.analyzers import llm

    analyses = llm.analyze(samples, config, cache=cache, on_progress=on_progress, on_note=on_note)
    if config.backend == "llm_then_hindsight":
        failed = {analysis.trajectory_id for analysis in analyses if analysis.failed}
        ids = zip(samples.trajectory_ids, samples.group_ids, strict=True)
        groups = {group_id for trajectory_id, group_id in ids if trajectory_id in failed}
        with_siblings = samples.select(np.array([group_id in groups for group_id in samples.group_ids], bool))
        by_rules = {one.trajectory_id: one for one in hindsight.analyze(with_siblings, config, words)}
        return [
            _with_skills_of_rules(analysis, by_rules[analysis.trajectory_id]) if analysis.failed else analysis
            for analysis in analyses
        ]
    return analyses


def is_analyzed(samples: Samples, config: AnalyzerConfig) -> Bool[np.ndarray, " samples"]:
    """Whether skills of the sample's trajectory are wanted: not of a broken one, nor, once `failed_only_after`
    iterations are completed, of a success."""
    wanted = np.array([outcome != "broken" for outcome in samples.texts("outcome")], bool)
    failed_only = config.failed_only_after is not None and samples.completed_iterations >= config.failed_only_after
    return wanted & ~samples.won if failed_only else wanted


def step_returns(samples: Samples, gamma: float, penalty: float) -> Float32[np.ndarray, " samples"]:
    """Discounted returns less the step's own penalty, whatever the order of the samples."""
    order = np.argsort(samples.numbers("step"), kind="stable")
    ids = np.asarray(samples.trajectory_ids, dtype=object)
    returns = np.empty(len(samples), dtype=np.float32)
    returns[order] = discounted_returns(samples.numbers("reward")[order], ids[order], gamma)
    return invalid_action_penalty(returns, samples.numbers("is_valid"), penalty)


def select_critical(
    samples: Samples, returns: Float32[np.ndarray, " samples"], config: AnalyzerConfig
) -> Bool[np.ndarray, " samples"]:
    """Which samples are critical steps by the statistics selector; broken episodes take no part."""
    order = np.argsort(samples.numbers("step"), kind="stable")  # the selector counts steps in order of appearance
    took_part = np.array([outcome != "broken" for outcome in samples.texts("outcome")], bool)
    rows = order[took_part[order]]
    states, group_ids, trajectory_ids = (
        samples.table[name].take(pa.array(rows)).to_pylist() for name in ("observation", "group_id", "trajectory_id")
    )
    critical = np.zeros(len(samples), bool)
    critical[rows] = critical_steps(
        returns[rows],
        states,
        group_ids,
        trajectory_ids,
        min_group_size=config.selector_min_group_size,
        var_quantile=config.selector_var_quantile,
        top_k=config.selector_top_k,
    )
    return critical


def _with_skills_of_rules(failed: Analysis, by_rules: Analysis) -> Analysis:
    """The model's failed analysis with the skills of hindsight; its reason stays."""
    return replace(
        failed,
        summary=by_rules.summary,
        episode_skill=by_rules.episode_skill,
        step_skills=by_rules.step_skills,
        reasons=by_rules.reasons,
        analyzer=by_rules.analyzer,
        error=f"{failed.error}; hindsight: {by_rules.error}" if by_rules.failed else failed.error,
    )


def _by_users_function(samples: Samples, config: AnalyzerConfig) -> list[Analysis]:
    """What the user's function says, held to what is true of the other backends: clean texts, step skills of steps that
    there are and no more than allowed, one analysis of each trajectory that is `analyzed` and none of others.

    Raises DataError where it gives something else than analyses of the iteration's trajectories.
    """
    analyzer: Analyzer = imported(config.backend, "analyzer.backend")
    given: dict[str, Analysis] = {}
    for analysis in analyzer(samples, config):
        if not isinstance(analysis, Analysis):
            raise DataError(f"analyzer {config.backend}: gave {analysis!r}, expected an Analysis")
        if analysis.trajectory_id in given:
            raise DataError(f"analyzer {config.backend}: gave two analyses of trajectory {analysis.trajectory_id!r}")
        given[analysis.trajectory_id] = analysis
    steps = {name: len(rows) for name, rows in samples.by_trajectory().items()}
    if unknown := given.keys() - steps.keys():
        raise DataError(f"analyzer {config.backend}: no trajectory of the iteration is called {min(unknown)!r}")
    analyses = []
    for name in samples.select(samples.numbers("analyzed")).by_trajectory():
        analysis = given.get(name, Analysis(name, "", "", {}, error="the analyzer gave no analysis"))
        skill = clean_skill(analysis.episode_skill)
        step_skills = {step: clean_skill(text) for step, text in analysis.step_skills.items()} if skill else {}
        analyses.append(
            replace(
                analysis,
                summary=clean_skill(analysis.summary),
                episode_skill=skill,
                step_skills=select_step_skills(step_skills, range(steps[name]), config.max_step_skills),
                analyzer=config.backend,
                error=None if skill else analysis.error or "the analyzer gave no episode skill",
            )
        )
    return analyses
