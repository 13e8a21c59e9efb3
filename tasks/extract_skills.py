"""Stage 2: hindsight on finished trajectories -> `skills`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from envs.base import action_words_of
from infra.store import CampaignStore, create_object, read_object
from opid_core.learning import methods
from opid_core.samples import Samples
from opid_core.skills.analyzers import analyze, is_analyzed
from opid_core.skills.replies import Analysis, skills_table
from tasks.context import Context, StageResult, merge
from tasks.progress import report
from tasks.rollout import forbidden_texts
from tasks.stage import environment_maker, load, save, stage, timed


@dataclass(frozen=True)
class StoredReplies:
    """The analyzer's replies in the store: `<root>/<campaign>/_analyses/<key>.json`, create-only. A retried stage or
    iteration asks for none of them again."""

    store: CampaignStore

    def get(self, key: str) -> str | None:
        data = read_object(self.store, self._path(key))
        return None if data is None else data.decode("utf-8", errors="replace")

    def put(self, key: str, text: str) -> None:
        create_object(self.store, self._path(key), text.encode())

    def _path(self, key: str) -> str:
        return f"_analyses/{key}.json"


@stage("extract_skills")
def extract_skills(context: Context, rolled_out: StageResult) -> StageResult:
    """Read each trajectory of the iteration and write down what it teaches."""
    assert context.iteration != "start"
    iteration = context.iteration
    tables, config = load(context, rolled_out), context.config
    metrics: dict[str, float] = {}
    samples = Samples.from_tables(tables["steps"], tables["trajectories"])
    analyses, wanted = [], set()
    if methods.get(config.method.name).uses_skills:
        wanted = {*samples.select(is_analyzed(samples, config.analyzer)).trajectory_ids}
        with timed(metrics, "seconds/extract_skills_s"):
            analyses = analyze(
                samples,
                config.analyzer,
                action_words_of(environment_maker(config)()),
                gamma=config.method.gamma,
                penalty=config.environment.invalid_action_penalty,
                cache=StoredReplies(context.store),
                on_progress=lambda done, total: report(iteration, "extract skills", done, total),
                on_note=lambda note: report(iteration, "extract skills", note=note),
            )
    skills = skills_table(analyses, tables["trajectories"])
    metrics |= counts(analyses)
    limit = config.analyzer.max_failure_rate
    forbidden = forbidden_texts(config, iteration)
    saved = save(context, "skills", skills, tables, max_failure_rate=limit, analyzed=wanted, forbidden=forbidden)
    return merge(saved, StageResult(metrics=metrics))


def counts(analyses: Sequence[Analysis]) -> dict[str, float]:
    """How the analyses went. Tokens and cost are of this run's own calls, what was replayed was paid for before; the
    cost of calls without configured prices is unknown (nan)."""
    asked = [analysis for analysis in analyses if not analysis.replayed]
    costs = [analysis.cost for analysis in asked if analysis.tokens is not None]
    return {
        "analyses/failed": sum(analysis.failed for analysis in analyses),
        "analyses/by_hindsight_after_llm": sum(a.error is not None and not a.failed for a in analyses),
        "analyses/replayed": len(analyses) - len(asked),
        "analyses/cut": sum(analysis.cut is not None for analysis in analyses),
        "tokens/extract_skills": sum(analysis.tokens or 0 for analysis in asked),
        "cost/extract_skills": sum(math.nan if cost is None else cost for cost in costs),
    }
