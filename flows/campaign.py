"""A campaign: the initial policy, then iteration after iteration, resumed at the first that is not committed."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

from prefect import flow
from prefect.runtime import flow_run

from flows.iteration import run_iteration
from flows.start import run_start
from infra import stages
from infra.lease import Lease, held
from infra.manifest import Manifest
from infra.store import CampaignStore, manifests, next_iteration, open_campaign, prune_states
from opid_core.config import CampaignConfig
from opid_core.errors import (
    AttemptUnusable,
    FailureBudgetExceeded,
    GateError,
    InfrastructureError,
    LeaseLost,
    OpidError,
)
from tasks import workers
from tasks.gates.results import DRIFT_FLOORS
from tasks.progress import report
from tasks.stage import leniently, patiently
from tasks.track import track


@flow(name="campaign", flow_run_name="{config.campaign}", validate_parameters=False)
def run_campaign(config: CampaignConfig) -> list[Manifest]:
    """Run or resume the campaign of `config`; returns the whole chain of manifests.

    Raises LeaseHeld where another driver works on it, and what ended its last attempt at an iteration.
    """
    recovery, values = config.recovery, config.model_dump(mode="json")
    endpoint = config.storage.endpoint_url
    store = patiently(recovery, "open_store", open_campaign, config.root, config.campaign, values, endpoint)
    with held(store, recovery.lease_ttl_s, flow_run.id, _waiting) as lease:
        try:
            chain = patiently(recovery, "read_chain", manifests, store)
            if len(chain) > 1:
                done = len(chain) - 1
                note = f"Resuming {config.campaign} after {done} of {config.iterations} iterations."
                report(done - 1, "resumed", note=note)
            if chain:
                _after_commit(config, store, chain)  # a crash may have come before it
            while len(chain) <= config.iterations:
                run = partial(_run_held, lease, config, store, chain, since_s=time.monotonic())
                chain.append(attempted(config, store, next_iteration(chain), run))
                _after_commit(config, store, chain)
        finally:
            workers.close()
    return chain


def _waiting(text: str) -> None:
    report("start", "resumed", note=text)


def _run_held(lease: Lease, *place: Any, **named: Any) -> Manifest:
    """`run_next`, while the campaign is ours. Raises LeaseLost."""
    lease.check()
    return run_next(*place, **named)


def run_next(
    config: CampaignConfig, store: CampaignStore, chain: list[Manifest], attempt: int, degrade: bool, since_s: float
) -> Manifest:
    """Run what comes after `chain` (its first manifests): the start, or an iteration."""
    if not chain:
        return run_start(config, store, attempt, since_s)
    iteration = len(chain) - 1
    recent = chain[1:][max(0, iteration - config.gates.drift_iterations) :]
    history = [{name: value for name, value in m.metrics.items() if name in DRIFT_FLOORS} for m in recent]
    return run_iteration(config, store, iteration, chain[0], chain[-1], attempt, since_s, history, degrade)


def _after_commit(config: CampaignConfig, store: CampaignStore, chain: list[Manifest]) -> None:
    """Metrics of the newest iteration to trackers, old optimizer states away. Doing it again changes nothing."""
    leniently(config.recovery, "track", track, config, store, chain)
    kept = config.storage.optimizer_states
    if kept is not None:
        leniently(config.recovery, "prune_states", prune_states, store, chain, kept)


def attempted(
    config: CampaignConfig,
    store: CampaignStore,
    iteration: int | Literal["start"],
    run: Callable[[int, bool], Manifest],
) -> Manifest:
    """Run an iteration (a function of the number of its attempt, and of whether to degrade), whole again after a
    failure that may pass, at most `recovery.iteration_attempts` times; where the failure budget ended the last of them
    and the config says so, once more, whatever the budget says. What ended an attempt is recorded; `opid status` shows
    it."""
    failed, degrade = 0, False
    while True:
        attempt = None  # not known while the store is away
        try:
            attempt = patiently(config.recovery, "count_attempts", stages.current_attempt, store, iteration)
            return run(attempt, degrade)
        except AttemptUnusable as error:
            _give_up(store, iteration, attempt, error)
        except (InfrastructureError, GateError, TimeoutError) as error:
            _give_up(store, iteration, attempt, error)
            failed += 1
            if failed < config.recovery.iteration_attempts:
                continue
            if degrade or not isinstance(error, FailureBudgetExceeded) or config.gates.on_exhausted != "degrade":
                raise
            degrade = True
        except LeaseLost:
            raise  # the attempt goes on elsewhere
        except OpidError as error:
            _give_up(store, iteration, attempt, error)
            raise


def _give_up(
    store: CampaignStore, iteration: int | Literal["start"], attempt: int | None, error: OpidError | TimeoutError
) -> None:
    reason = f"{type(error).__name__}: {error}"
    if attempt is None:
        report(iteration, "given up", note=f"{iteration}: no attempt could begin: {reason}")
        return
    report(iteration, "given up", note=f"{iteration}: attempt {attempt + 1} given up: {reason}")
    try:
        stages.give_up(store, iteration, attempt, reason)
    except InfrastructureError:
        # The storage itself is away: the attempt stays open and is gone on with, and its failure counts here.
        report(iteration, "given up", note=f"{iteration}: the store could not be told so")
