"""What the flow of a campaign asks of its store, as tasks: tried again while the store is away."""

from __future__ import annotations

from prefect import task

from infra import stages
from infra.manifest import Manifest
from infra.store import CampaignStore, manifests, open_campaign
from opid_core.config import CampaignConfig
from tasks.iteration import TASK, campaign_run
from tasks.progress import logged


@task(**TASK)
def open_store(config: CampaignConfig) -> CampaignStore:
    """The campaign's store; made where there is none. Raises ConfigError where it holds another config."""
    with logged("open_store"):
        return open_campaign(config.root, config.campaign, config.model_dump(mode="json"), config.storage.endpoint_url)


@task(**TASK)
def read_chain(campaign: str) -> list[Manifest]:
    """The campaign's commits so far."""
    with logged("read_chain"):
        return manifests(campaign_run(campaign).store)


@task(task_run_name="count_attempts-{iteration}", **TASK)
def count_attempts(campaign: str, iteration: int) -> int:
    """The attempt at `iteration` to make or to go on with: how many were given up."""
    with logged("count_attempts", iteration):
        return stages.current_attempt(campaign_run(campaign).store, iteration)
