"""The start of a campaign: the initial policy (a base policy, or one made by warm start) and its evaluation."""

from __future__ import annotations

from prefect import flow

from infra.manifest import Manifest, iteration_seed
from infra.store import CampaignStore, new_attempt
from opid_core.config import CampaignConfig
from tasks.commit import commit
from tasks.evaluate import evaluate
from tasks.initial_policy import initial_policy
from tasks.stage import Context


@flow(name="start", validate_parameters=False)
def run_start(config: CampaignConfig, store: CampaignStore) -> Manifest:
    """Make policy 0, evaluate it, commit both; returns the first manifest of the chain."""
    attempt = new_attempt()
    policy = initial_policy(config, store, attempt)
    context = Context(config, store, "start", attempt, iteration_seed(config.seed, 0, ""), policy, policy)
    evaluated = evaluate(context, config.evaluation.final_tasks or config.evaluation.tasks)
    return commit(context, policy, [evaluated], None)
