"""Stage 3: routing of every step -> `routes`."""

from __future__ import annotations

from prefect.assets import materialize

from envs.base import action_words_of
from opid_core.seeds import derive
from opid_core.skills.counts import analysis_metrics, skill_metrics, skill_texts
from opid_core.skills.routing import route_table
from tasks.episodes import environment_maker
from tasks.iteration import TASK, Iteration, asset, campaign_run, stage


@materialize(asset("routes"), asset_deps=[asset("steps"), asset("skills")], task_run_name="route-{iteration}", **TASK)
def route(campaign: str, iteration: int, attempt: int) -> None:
    """Decide for each step which skill it is scored under, if any."""
    with stage("route", campaign, iteration, attempt) as it:
        if it.is_reused:
            return
        trajectories, skills = it.table("trajectories"), it.table("skills")
        words = action_words_of(environment_maker(it.config)())
        routes = route_table(it.samples, skills, it.config.method, derive(it.seed, "route"), words)
        it.metrics |= skill_metrics(trajectories, skills, routes)
        it.metrics |= analysis_metrics(skills, _texts_before(it))
        it.write("routes", routes)


def _texts_before(it: Iteration) -> set[str]:
    """The skills' texts of the iteration before."""
    record = it.parent.tables.get("skills") if it.parent else None
    return set() if record is None else skill_texts(campaign_run(it.config.campaign).table(record, ["text"]))
