"""Stage 3: routing of every step -> `routes`."""

from __future__ import annotations

from opid_core.evaluation import skill_metrics
from opid_core.samples import Samples
from opid_core.seeds import derive
from opid_core.skills.routing import route_table
from tasks.context import Context, StageResult, merge
from tasks.progress import report
from tasks.stage import load, save, stage


@stage("route")
def route(context: Context, rolled_out: StageResult, extracted: StageResult) -> StageResult:
    """Decide for each step which skill it is scored under, if any."""
    assert context.iteration != "start"
    report(context.iteration, "route")
    tables = load(context, rolled_out, extracted)
    samples = Samples.from_tables(tables["steps"], tables["trajectories"])
    routes = route_table(samples, tables["skills"], context.config.method, derive(context.seed, "route"))
    metrics = skill_metrics(tables["trajectories"], tables["skills"], routes)
    return merge(save(context, "routes", routes, tables), StageResult(metrics=metrics))
