"""One iteration: the chain of its stages, ended by the commit that makes it exist."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from prefect import flow

from infra.manifest import Manifest, iteration_seed, weights_hash
from infra.store import CampaignStore
from opid_core.config import CampaignConfig
from tasks.commit import commit
from tasks.context import Context, Policy
from tasks.evaluate import evaluate
from tasks.extract_skills import extract_skills
from tasks.rescore import rescore
from tasks.rollout import rollout
from tasks.route import route
from tasks.update import update


@flow(name="iteration", flow_run_name="iteration-{iteration}", validate_parameters=False)
def run_iteration(
    config: CampaignConfig,
    store: CampaignStore,
    iteration: int,
    start: Manifest,
    parent: Manifest,
    attempt: int,
    since_s: float,
    history: Sequence[Mapping[str, float | None]],
    degrade: bool,
) -> Manifest:
    """Run iteration `iteration` after `parent` and return its committed manifest; stages that an interrupted run of
    the same attempt has finished are reused. `history`: headline metrics of the iterations before, oldest first;
    `degrade`: commit even with an exceeded failure budget, marked so."""
    context = Context(
        config=config,
        store=store,
        iteration=iteration,
        seed=iteration_seed(config.seed, iteration, weights_hash(parent.policy)),
        parent=parent.content,
        attempt=attempt,
        since_s=since_s,
        degrade=degrade,
        policy=Policy(version=parent.policy_version, folder=parent.policy),
        reference=Policy(version=start.policy_version, folder=start.policy),
    )
    rolled_out = rollout(context)
    extracted = extract_skills(context, rolled_out)
    routed = route(context, rolled_out, extracted)
    rescored = rescore(context, rolled_out, extracted, routed)
    updated = update(context, rolled_out, rescored)
    assert updated.policy is not None
    results = [rolled_out, extracted, routed, rescored, updated]
    if panel_size := evaluation_due(config, iteration):
        results.append(evaluate(replace(context, policy=updated.policy), panel_size))
    return commit(context, updated.policy, results, parent, history)


def evaluation_due(config: CampaignConfig, iteration: int) -> int:
    """How many tasks to evaluate after `iteration`: the final panel after the last, 0 when it is not due."""
    if iteration == config.iterations - 1:
        return config.evaluation.final_tasks or config.evaluation.tasks
    every = config.evaluation.every
    return config.evaluation.tasks if every and (iteration + 1) % every == 0 else 0
