"""Stage 5: one iteration's PPO update -> the next policy in the store."""

from __future__ import annotations

from prefect.assets import materialize

from infra.store import new_attempt
from opid_core.learning.rescoring import broken_groups
from opid_core.seeds import derive
from tasks.iteration import TASK, Iteration, asset, stage


@materialize(
    asset("policy"),
    asset_deps=[asset("steps"), asset("scores"), asset("policy")],
    task_run_name="update-{iteration}",
    **TASK,
)
def update(campaign: str, iteration: int, attempt: int, wait: bool = True) -> None:
    """Train on the iteration's samples and store weights and optimizer state.

    Without `wait` it returns when the weights are stored: the state follows in the background, and the next call waits
    for it. Until then nothing is recorded: should the learner end before that, the next call does all of it again.
    """
    with stage("update", campaign, iteration, attempt) as it:
        if it.is_reused:
            return
        if it.is_left_open and it.workers.is_storing:
            it.go_on()
        else:
            _train(it)
        if not wait:
            it.leave_open()
            return
        it.progress(note="storing the optimizer state")
        with it.timed("seconds/store_policy_s"):
            stored = it.workers.stored()
        it.keep_policy(stored)


def _train(it: Iteration) -> None:
    """Make the next policy and store its weights, and begin to store its optimizer state.

    Where the method filters tied groups and all of them tie, there is nothing to learn: the policy stays as it is.
    """
    samples = it.config.method.taught(it.samples).learned()
    it.metrics["learner/micro_batch_tokens"] = it.workers.micro_batch_tokens
    it.metrics["update/learning_rate"] = it.config.learner.learning_rate_in(it.number)
    with it.workers.updating(it.policy) as learner:
        with it.timed("seconds/update_s"):
            numbers = {"optimizer_steps": 0.0, "tokens": 0.0}
            if len(samples) or not _all_tied(it):
                numbers = learner.update(
                    samples,
                    seed=derive(it.seed, "update"),
                    learning_rate=it.metrics["update/learning_rate"],
                    extra_loss=it.config.method.loss,
                    on_progress=lambda done, total: it.progress(done, total, "optimizer steps"),
                )
        with it.timed("seconds/store_policy_s"):
            weights = learner.store(it.store, f"policies/{it.number:06d}/{new_attempt()}")
    it.workers.updated(weights)
    it.metrics |= {f"update/{name}": value for name, value in numbers.items()}
    it.keep_policy(weights)


def _all_tied(it: Iteration) -> bool:
    """Whether an iteration without samples lacks them because its intact groups tie."""
    trajectories = it.table("trajectories")
    intact = set(trajectories.column("group_id").to_pylist()) - broken_groups(trajectories)
    return it.config.method.filters_ties and bool(intact)
