"""Policy 0: a copy of the base policy that the config names, or a tiny one made by warm start."""

from __future__ import annotations

import tempfile
from pathlib import Path

from prefect import task

from infra.store import CampaignStore, put_folder
from opid_core.config import CampaignConfig
from opid_core.models import check_policy_folder
from opid_core.warm_start import warm_start
from tasks.progress import report
from tasks.stage import RETRIES, Policy, environment_maker


@task(name="initial_policy", **RETRIES)
def initial_policy(config: CampaignConfig, store: CampaignStore, attempt: str) -> Policy:
    """Store policy 0 under `attempt`."""
    uri = f"policies/000000/{attempt}"
    if config.policy is not None:
        check_policy_folder(config.policy)
        return Policy(0, put_folder(store, config.policy, uri))
    with tempfile.TemporaryDirectory() as folder:
        warm_start(config, environment_maker(config), Path(folder), on_progress=lambda *p: report(None, *p))
        return Policy(0, put_folder(store, folder, uri))
