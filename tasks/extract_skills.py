"""Stage 2: hindsight on finished trajectories -> `skills`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from prefect.assets import materialize

from envs.base import action_words_of
from infra.store import CampaignStore, create_object, read_object
from opid_core.skills.analyzers import analyze, is_analyzed
from opid_core.skills.banks import from_bank
from opid_core.skills.replies import Analysis, skills_table
from tasks.episodes import environment_maker
from tasks.iteration import TASK, asset, stage
from tasks.rollout import forbidden_texts


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


@materialize(
    asset("skills"),
    asset_deps=[asset("steps"), asset("trajectories")],
    task_run_name="extract_skills-{iteration}",
    **TASK,
)
def extract_skills(campaign: str, iteration: int, attempt: int) -> None:
    """Read each trajectory of the iteration and write down what it teaches."""
    with stage("extract_skills", campaign, iteration, attempt) as it:
        if it.is_reused:
            return
        config, samples = it.config, it.samples
        analyses, wanted = [], set()
        if bank := config.method.bank_of_teacher:
            analyses = from_bank(samples, bank)
            wanted = {analysis.trajectory_id for analysis in analyses}
        elif config.method.wants_skills(samples.completed_iterations):
            wanted = {*samples.select(is_analyzed(samples, config.analyzer)).trajectory_ids}
            with it.timed("seconds/extract_skills_s"):
                analyses = analyze(
                    samples,
                    config.analyzer,
                    action_words_of(environment_maker(config)()),
                    gamma=config.method.gamma,
                    penalty=config.environment.invalid_action_penalty,
                    cache=StoredReplies(it.store),
                    on_progress=it.progress,
                    on_note=lambda note: it.progress(note=note),
                )
        skills = skills_table(analyses, it.table("trajectories"))
        it.metrics |= counts(analyses)
        limit, forbidden = config.analyzer.max_failure_rate, forbidden_texts(config, it.number)
        it.write("skills", skills, max_failure_rate=limit, analyzed=wanted, forbidden=forbidden)


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
