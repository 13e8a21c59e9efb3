"""Stage 5: one iteration's PPO update -> the next policy in the store, and the iteration's `metrics`."""

from __future__ import annotations

import tempfile
from pathlib import Path

from prefect import task

from infra.store import put_folder
from opid_core.rescoring import training_samples
from opid_core.seeds import derive
from tasks import workers
from tasks.progress import report
from tasks.stage import RETRIES, Context, Policy, StageResult, load, timed


@task(name="update", **RETRIES)
def update(context: Context, rolled_out: StageResult, rescored: StageResult) -> tuple[Policy, StageResult]:
    """Train on the iteration's samples and store weights and optimizer state under this attempt."""
    assert context.iteration != "start"
    tables = load(context, rolled_out, rescored)
    samples = training_samples(tables["steps"], tables["scores"])
    report(context.iteration, "update", 0, len(samples))
    metrics: dict[str, float] = {}
    with workers.updating(context) as learner:
        with timed(metrics, "seconds/update_s"):
            numbers = learner.update(samples, seed=derive(context.seed, "update"))
        version = context.policy.version + 1
        with timed(metrics, "seconds/store_policy_s"), tempfile.TemporaryDirectory() as folder:
            learner.export(Path(folder))
            learner.save(Path(folder) / workers.OPTIMIZER_FOLDER)
            stored = put_folder(context.store, folder, f"policies/{version:06d}/{context.attempt}")
    policy = Policy(version, stored)
    workers.updated(policy)
    metrics |= {f"update/{name}": value for name, value in numbers.items()}
    return policy, StageResult(metrics=metrics)
