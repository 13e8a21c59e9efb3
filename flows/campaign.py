"""A campaign: the initial policy, then iteration after iteration, resumed at the first that is not committed."""

from __future__ import annotations

from prefect import flow

from flows.iteration import run_iteration
from flows.start import run_start
from infra.manifest import Manifest
from infra.store import manifests, open_campaign
from opid_core.config import CampaignConfig
from tasks import workers
from tasks.track import track


@flow(name="campaign", flow_run_name="{config.campaign}", validate_parameters=False)
def run_campaign(config: CampaignConfig) -> list[Manifest]:
    """Run or resume the campaign of `config`; returns the whole chain of manifests."""
    store = open_campaign(config.root, config.campaign, config.model_dump(mode="json"))
    chain = manifests(store)
    try:
        if not chain:
            chain.append(run_start(config, store))
        for iteration in range(len(chain) - 1, config.iterations):
            chain.append(run_iteration(config, store, iteration, start=chain[0], parent=chain[-1]))
            track(config, store, chain)
    finally:
        workers.close()
    return chain
