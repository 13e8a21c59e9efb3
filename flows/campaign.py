"""A campaign: the initial policy, then iteration after iteration, resumed at the first that is not committed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from prefect import Task, flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext
from prefect.exceptions import Abort
from prefect.runtime import flow_run
from prefect.states import Cancelled

from flows import notify
from flows.reports.standing import seconds_left
from infra import stages
from infra.lease import held
from infra.manifest import Manifest
from opid_core.config import CampaignConfig
from opid_core.errors import (
    AttemptUnusable,
    FailureBudgetExceeded,
    GateError,
    InfrastructureError,
    LeaseLost,
    OpidError,
    is_interrupt,
)
from tasks.commit import build_manifest, commit
from tasks.evaluate import evaluate
from tasks.extract_skills import extract_skills
from tasks.initial_policy import initial_policy
from tasks.iteration import CampaignRun, campaign_run, configured
from tasks.progress import announce
from tasks.rescore import rescore
from tasks.results import evaluation_due, is_evaluated
from tasks.rollout import rollout
from tasks.route import route
from tasks.store import count_attempts, open_store, read_chain, when_reachable
from tasks.track import prune_states, track
from tasks.update import update


@flow(name="campaign", flow_run_name="{config.campaign}", validate_parameters=False, persist_result=False)
def run_campaign(config: CampaignConfig) -> list[Manifest]:
    """Run or resume the campaign of `config`; returns the whole chain of manifests.

    Raises LeaseHeld where another driver works on it, and what ended its last attempt at an iteration.
    """
    with cancelled_by_interrupt(), notify.on_failure(config), ExitStack() as until_end:
        store = configured(open_store, config)(config)
        take = partial(held, store, config.recovery.lease_ttl_s, flow_run.id, _tell_wait, iterations=config.iterations)
        # No task: it may wait longer than one may last. A lease that was taken by a try whose answer was lost is
        # renewed by nobody, and waited for as that of a dead driver: no two are held at once.
        lease = when_reachable(config.recovery, lambda: until_end.enter_context(take()), _tell_fault)
        with CampaignRun(config, store, lease=lease) as run:
            run.chain += configured(read_chain, config)(config.campaign)
            if len(run.chain) > 1:
                done = len(run.chain) - 1
                note = f"Resuming {config.campaign} after {done} of {config.iterations} iterations"
                left_s = seconds_left(run.chain, config.iterations, is_running=False)
                note += f", about {timedelta(seconds=round(left_s))} left." if left_s else "."
                announce(done, "campaign", "resumed", note)
            if run.chain:  # a crash may have come before what follows a commit
                notify.committed(config, store, run.chain[-1])
                _follow_up(run)
            run.since_s = time.monotonic()
            while len(run.chain) <= config.iterations:

                def attempt_once(attempt: int, degrade: bool) -> Manifest:
                    lease.check()
                    return run_iteration(config.campaign, len(run.chain), attempt, degrade)

                run.chain.append(attempted(run, attempt_once))
                run.since_s = time.monotonic()  # what follows the commit counts to the next iteration
                notify.committed(config, store, run.chain[-1])
                _follow_up(run)
            if not is_evaluated(config, run.chain[-1]):
                done = len(run.chain) - 1
                note = f"{config.campaign} ends without its final evaluation: iteration {done} was not planned as the "
                note += f"last. Make one more (--set iterations={done + 1}), or play its policy with `opid evaluate`."
                announce(None, "campaign", "fault", note)
            return run.chain


def _tell_wait(text: str) -> None:
    announce(None, "campaign", "resumed", text)


def _tell_fault(text: str) -> None:
    announce(None, "campaign", "fault", text)


@flow(name="iteration", flow_run_name="iteration-{iteration}", validate_parameters=False, persist_result=False)
def run_iteration(campaign: str, iteration: int, attempt: int, degrade: bool = False) -> Manifest:
    """One attempt at what comes after the chain of the campaign's run: the start, or an iteration. Returns its
    committed manifest; stages that an interrupted run of the same attempt has finished are reused.

    `degrade`: commit even with an exceeded failure budget, marked so.
    """
    with cancelled_by_interrupt():
        config = campaign_run(campaign).begin(iteration, attempt, degrade).config
        names = (campaign, iteration, attempt)
        if iteration == 0:
            configured(initial_policy, config)(*names)
        else:
            configured(rollout, config)(*names)
            configured(extract_skills, config)(*names)
            configured(route, config)(*names)
            configured(rescore, config)(*names)
            if config.storage.background and iteration < config.iterations:
                configured(update, config)(*names, wait=False)
                play_ahead(campaign_run(campaign))  # while the optimizer state is stored
            configured(update, config)(*names)
        if evaluation_due(config, iteration):
            configured(evaluate, config)(*names)
        return configured(commit, config)(*names)


def play_ahead(run: CampaignRun) -> None:
    """Play the rollout of the iteration after the one that is at work: it needs no more than the new weights, which are
    stored. What goes wrong is told and left to that iteration, which then plays its own."""
    assert run.iteration is not None
    if not run.workers.has_engine:  # of a run that was resumed after its rollout
        return
    name, following = run.config.campaign, run.iteration.number + 1
    try:
        attempt = configured(count_attempts, run.config)(name, following)
        run.begin_ahead(build_manifest(run.iteration, created_at=datetime.now(UTC), prefect_run_id=None), attempt)
        configured(rollout, run.config).with_options(retries=0)(name, following, attempt)
    except (OpidError, TimeoutError) as error:
        announce(following, "rollout", "fault", f"rollout of iteration {following} was not played ahead: {error}")


def attempted(run: CampaignRun, attempt_once: Callable[[int, bool], Manifest]) -> Manifest:
    """Run the next iteration (a function of the number of its attempt, and of whether to degrade), whole again after a
    failure that may pass, at most `recovery.iteration_attempts` times; where the failure budget ended the last of them
    and the config says so, once more, whatever the budget says. What ended an attempt is recorded; `opid status` shows
    it. An attempt that could not be gone on with costs none of these, unless that cannot be recorded."""
    config, iteration = run.config, len(run.chain)
    failed, degrade = 0, False
    while True:
        attempt = None  # not known while the store is away
        try:
            attempt = configured(count_attempts, config)(config.campaign, iteration)
            return attempt_once(attempt, degrade)
        except LeaseLost:
            raise  # the attempt goes on elsewhere
        except (OpidError, TimeoutError) as error:
            closed = _close_attempt(run, iteration, attempt, error)
            if not isinstance(error, AttemptUnusable | InfrastructureError | GateError | TimeoutError):
                raise
            failed += not (closed and isinstance(error, AttemptUnusable))
            if failed < config.recovery.iteration_attempts:
                continue
            if degrade or not isinstance(error, FailureBudgetExceeded) or config.gates.on_exhausted != "degrade":
                raise
            degrade = True


def _close_attempt(run: CampaignRun, iteration: int, attempt: int | None, error: OpidError | TimeoutError) -> bool:
    """Record what ended an attempt; whether that could be done. An attempt that stays open is gone on with."""
    reason = f"{type(error).__name__}: {error}"
    if attempt is None:
        announce(iteration, "attempt", "given up", f"{iteration}: no attempt could begin: {reason}")
        return False
    announce(iteration, "attempt", "given up", f"{iteration}: attempt {attempt + 1} given up: {reason}")
    try:
        stages.give_up(run.store, iteration, attempt, reason)
    except InfrastructureError as fault:
        announce(iteration, "attempt", "given up", f"{iteration}: the store could not be told so: {fault}")
        return False
    return True


def _follow_up(run: CampaignRun) -> None:
    """What follows the newest commit. Doing it again changes nothing; no commit depends on it, so that a fault which
    does not pass is told, and costs nothing else."""
    iteration = run.chain[-1].iteration
    follow_ups: list[Task[Any, None]] = [track, prune_states]
    for task in follow_ups:
        try:
            configured(task, run.config)(run.config.campaign, iteration)
        except (InfrastructureError, TimeoutError) as error:
            announce(iteration, task.name, "fault", f"{task.name} was left undone: {error}")


# Interrupts ---------------------------------------------------------------------------------------------------------


class Interrupted(Abort, KeyboardInterrupt):
    """Ctrl-C in a flow whose run is marked cancelled: Prefect lets an `Abort` pass, and does not call it a crash."""

    def __init__(self, state: State) -> None:
        super().__init__(state.message)
        self.state = state


@contextmanager
def cancelled_by_interrupt() -> Iterator[None]:
    """Around the body of a flow: Ctrl-C marks its run as cancelled, with the reason, and goes on as an interrupt."""
    try:
        yield
    except BaseException as error:  # Prefect's own code between two tasks may turn Ctrl-C into an error of another type
        context = FlowRunContext.get()
        if not is_interrupt(error) or context is None or context.flow_run is None:
            raise
        state = Cancelled(message="Interrupted (Ctrl-C). The same command continues where it was.")
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(context.flow_run.id, state, force=True)
        raise Interrupted(state) from None
