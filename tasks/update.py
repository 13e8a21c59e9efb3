"""Stage 5: one iteration's PPO update -> the next policy in the store, and the iteration's `metrics`."""

from __future__ import annotations

import pyarrow as pa

from infra.scratch import scratch_folder
from infra.store import STATE_FOLDER, new_attempt, put_folder
from opid_core.learning import methods
from opid_core.learning.rescoring import broken_groups
from opid_core.samples import Samples
from opid_core.seeds import derive
from tasks import workers
from tasks.context import Context, Policy, StageResult
from tasks.progress import report
from tasks.stage import load, stage, timed


@stage("update")
def update(context: Context, rolled_out: StageResult, rescored: StageResult) -> StageResult:
    """Train on the iteration's samples and store weights and optimizer state.

    Where the method filters tied groups and all of them tie, there is nothing to learn: the policy stays as it is.
    """
    assert context.iteration != "start"
    tables = load(context, rolled_out, rescored)
    samples = Samples.from_tables(tables["steps"], tables["trajectories"], tables["scores"]).learned()
    report(context.iteration, "update")

    def progress(done: int, total: int) -> None:
        report(context.iteration, "update", done, total, "optimizer steps")

    metrics: dict[str, float] = {"learner/micro_batch_tokens": workers.micro_batch_tokens(context.config)}
    with workers.updating(context) as learner:
        with timed(metrics, "seconds/update_s"):
            numbers = {"optimizer_steps": 0.0, "tokens": 0.0}
            if len(samples) or not _all_tied(context, tables["trajectories"]):
                numbers = learner.update(
                    samples,
                    seed=derive(context.seed, "update"),
                    distillation=methods.distillation(context.config.method),
                    on_progress=progress,
                )
        version = context.policy.version + 1
        with timed(metrics, "seconds/store_policy_s"), scratch_folder() as folder:
            learner.export(folder)
            learner.save(folder / STATE_FOLDER)
            stored = put_folder(context.store, folder, f"policies/{version:06d}/{new_attempt()}")
    policy = Policy(version=version, folder=stored)
    workers.updated(policy)
    metrics |= {f"update/{name}": value for name, value in numbers.items()}
    return StageResult(metrics=metrics, policy=policy)


def _all_tied(context: Context, trajectories: pa.Table) -> bool:
    """Whether an iteration without samples lacks them because its intact groups tie."""
    intact = set(trajectories.column("group_id").to_pylist()) - broken_groups(trajectories)
    return methods.get(context.config.method.name).filters_ties and bool(intact)
