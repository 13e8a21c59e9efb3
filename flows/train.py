"""`opid train`, as a function and as the Prefect flow that schedules deploy."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path

from prefect import flow
from prefect.runtime import flow_run
from rich.console import Console

from flows import auto, cost, notify, plan, settings
from flows.campaign import cancelled_by_interrupt, run_campaign
from flows.display import live_progress
from flows.reports.audit import write_audit
from flows.reports.campaign import print_report, write_report
from flows.reports.formatting import Terminal, say
from infra import automations
from infra.interrupts import defer_interrupts
from infra.store import find_campaign, is_committed, open_campaign
from opid_core.config import CampaignConfig, load_config
from tasks.cluster import check_store
from tasks.store import when_reachable


def _run_name() -> str:
    """The campaign where the overrides name it, else the config's name without its folders: lists have no room for
    more."""
    named = [one.partition("=")[2] for one in flow_run.parameters.get("overrides", []) if one.startswith("campaign=")]
    return [Path(flow_run.parameters["config"]).stem, *named][-1]


@flow(name="train", flow_run_name=_run_name, log_prints=True, persist_result=False)
def train(config: str, overrides: list[str] = []) -> None:  # noqa: B006 - a plain default: Prefect shows it as a form
    """Run or resume the campaign of the config file `config`; `overrides` are `key=value`, as after `--set`."""
    with automations.suspension_event(), cancelled_by_interrupt():
        loaded = load_config(config, overrides)
        settings.apply(loaded.root)
        console = Terminal(width=120, force_terminal=False)
        with notify.on_failure(loaded):
            decided = check_and_open(loaded, console)
        train_campaign(decided, console)


def check_and_open(config: CampaignConfig, console: Console) -> CampaignConfig:
    """Check the config, open its store, and tell what is to be known before. Returns the config that it is stored with:
    `config` with what its `auto` stands for. Raises ConfigError or DataError at once, and as `when_reachable`."""

    def check() -> tuple[CampaignConfig, bool]:
        decided = auto.decided(config, partial(say, console))
        plan.check(decided)
        stored = decided.model_dump(mode="json")
        store = open_campaign(config.root, config.campaign, stored, config.storage.endpoint_url)
        if config.cluster.address is not None:
            check_store(store)
        return decided, not is_committed(store, 1)

    decided, is_unmeasured = when_reachable(config.recovery, check, partial(say, console))
    plan.warn(decided, console)
    if is_unmeasured and (expected := cost.first_guess(decided, by_auto=config.learner.dtype == auto.AUTO)):
        say(console, expected)
    return decided


def train_campaign(config: CampaignConfig, console: Console, api: AbstractContextManager[None] | None = None) -> None:
    """Run or resume the campaign with live progress, then write its report, which is printed, and its audit pages.

    `api` is the Prefect API to start first; None where this runs inside of a flow.
    """
    begin = "start Prefect" if api else "start"
    with live_progress(console, config, begin), api or nullcontext(), defer_interrupts():
        run_campaign(config)
    endpoint_url = config.storage.endpoint_url
    with console.status(f"{config.campaign}: writing the report and the pages"):
        folder = write_report(find_campaign(config.root, config.campaign, endpoint_url))
        page = write_audit(str(config.root), endpoint_url, config.campaign, ["last"], None, "html")[-1]
    print_report(folder, console)
    console.print(f"Open {page} in a browser.", soft_wrap=True, highlight=False)
