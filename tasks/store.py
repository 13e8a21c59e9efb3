"""What is asked of a store outside of the stages: tried again while the store is away, in a flow as tasks."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from prefect import task

from infra import stages
from infra.interrupts import interruptible
from infra.manifest import Manifest
from infra.store import CampaignStore, manifests, open_campaign
from opid_core.config import CampaignConfig, RecoveryConfig
from opid_core.errors import InfrastructureError
from tasks.iteration import TASK, campaign_run, retry_delays_s
from tasks.progress import logged

Result = TypeVar("Result")


def when_reachable(recovery: RecoveryConfig, ask: Callable[[], Result], say: Callable[[str], None]) -> Result:
    """`ask()`, which is no task, again as often as a task would be tried while the store is away; `say` is told.

    Raises what it raises, InfrastructureError only when the store stays away.
    """
    for delay_s in retry_delays_s(recovery):
        try:
            return ask()
        except InfrastructureError as error:
            say(f"{error}; trying again in {delay_s:.0f} s")
        with interruptible():
            time.sleep(delay_s)
    return ask()


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
