"""Attempts at an iteration, what follows a commit, and interrupts; under a real Prefect API."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect import flow, task
from prefect.client.orchestration import get_client

from flows import campaign
from flows.campaign import attempted, cancelled_by_interrupt, run_campaign
from infra import objects, stages
from infra.lease import status
from infra.store import commit, local_folder, location, manifests, open_campaign, pruned
from opid_core.config import build_config
from opid_core.errors import (
    AttemptUnusable,
    ConfigError,
    DataError,
    FailureBudgetExceeded,
    GateError,
    InfrastructureError,
    LeaseLost,
    OpidError,
)
from tasks import progress
from tasks.iteration import TASK, CampaignRun, campaign_run
from tasks.progress import logged
from tests.factories import make_chain, make_manifest, stored_paths, valid_rows

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("prefect_server")]

RECOVERY = {"stage_retries": 2, "retry_delay_s": 0.0, "stage_timeout_s": 300.0, "iteration_attempts": 2}


def new_run(tmp_path: Path, **values: Any) -> CampaignRun:
    config = build_config({"campaign": "demo", "root": str(tmp_path / "runs"), "recovery": RECOVERY, **values})
    return CampaignRun(config, open_campaign(config.root, config.campaign, config.model_dump(mode="json")))


@pytest.fixture
def run(tmp_path) -> Iterator[CampaignRun]:
    with new_run(tmp_path) as run:
        run.chain += make_chain(run.store, tmp_path, 3)
        yield run


def attempt_all(run: CampaignRun, *outcomes: Exception | str) -> tuple[str | Exception, list[int], list[str]]:
    """The result of `attempted` for iteration 3, the attempts that were made (-1: one that may degrade), and what
    people were told."""
    attempts, notes = [], []
    left = iter(outcomes)

    def attempt_once(attempt: int, degrade: bool) -> Any:
        attempts.append(-1 if degrade else attempt)
        outcome = next(left)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    @flow(validate_parameters=False)
    def drive() -> Any:
        try:
            return attempted(run, attempt_once)
        except (OpidError, TimeoutError) as error:
            return error

    stop = progress.listen(lambda event: notes.append(event.note))
    try:
        return drive(), attempts, notes
    finally:
        stop()


def reasons(run: CampaignRun) -> list[str]:
    return [failure["reason"] for failure in stages.failures(run.store, 3)]


def test_a_failed_iteration_is_tried_whole_as_an_attempt_of_its_own(run):
    result, attempts, notes = attempt_all(run, InfrastructureError("engine died"), "manifest")
    assert (result, attempts) == ("manifest", [0, 1])
    assert reasons(run) == ["InfrastructureError: engine died"]
    assert notes == ["3: attempt 1 given up: InfrastructureError: engine died"]


def test_a_campaign_stops_after_its_attempts_and_a_new_run_has_as_many(run):
    failing = [GateError("too many failed analyses"), TimeoutError("slow")]
    result, attempts, _ = attempt_all(run, *failing)
    assert isinstance(result, TimeoutError)
    assert attempts == [0, 1]
    assert reasons(run) == ["GateError: too many failed analyses", "TimeoutError: slow"]
    result, attempts, _ = attempt_all(run, InfrastructureError("again"), "manifest")
    assert (result, attempts) == ("manifest", [2, 3])


def test_only_an_exceeded_failure_budget_degrades_once_and_only_where_the_config_says_so(run, tmp_path):
    exceeded = FailureBudgetExceeded("failed analyses")
    result, attempts, _ = attempt_all(run, exceeded, exceeded, "manifest")
    assert (result, attempts) == (exceeded, [0, 1])
    degrading = new_run(tmp_path, gates={"on_exhausted": "degrade"})
    degrading.chain += run.chain
    with degrading as run:
        result, attempts, _ = attempt_all(run, exceeded, exceeded, "degraded")
        assert (result, attempts) == ("degraded", [2, 3, -1])
        bad_rows = GateError("rows")
        result, attempts, _ = attempt_all(run, exceeded, bad_rows, "never")
        assert (result, attempts) == (bad_rows, [4, 5])
        result, attempts, _ = attempt_all(run, exceeded, exceeded, bad_rows, "never")
        assert (result, attempts) == (bad_rows, [6, 7, -1])


def test_records_that_cannot_be_used_cost_no_attempt(run):
    unusable = [AttemptUnusable("damaged")] * 3
    result, attempts, _ = attempt_all(run, *unusable, InfrastructureError("x"), "manifest")
    assert (result, attempts) == ("manifest", [0, 1, 2, 3, 4])


def test_records_that_cannot_be_used_cost_attempts_where_the_store_cannot_be_written(run):
    """Where the iteration's records belong stands a file: nothing is there to read, and nothing can be made there."""
    records = Path(location(run.store, "_stages/000003"))
    records.parent.mkdir()
    records.touch()
    result, attempts, notes = attempt_all(run, *[AttemptUnusable("damaged")] * 3)
    assert isinstance(result, AttemptUnusable)
    assert attempts == [0, 0]
    assert len([note for note in notes if note.startswith("3: the store could not be told so: ")]) == 2


def test_bad_data_stops_at_once_and_says_why(run):
    result, attempts, _ = attempt_all(run, DataError("games.jsonl: line 3"), "never")
    assert isinstance(result, DataError)
    assert attempts == [0]
    assert reasons(run) == ["DataError: games.jsonl: line 3"]


def test_a_lost_lease_leaves_the_attempt_to_the_new_holder(run):
    result, attempts, _ = attempt_all(run, LeaseLost("taken over"))
    assert isinstance(result, LeaseLost)
    assert attempts == [0]
    assert reasons(run) == []


def test_a_store_that_is_away_when_the_attempts_are_counted_costs_attempts(run, monkeypatch):
    away, read_object = [InfrastructureError("the disk is away")], stages.read_object

    def read(*given: Any, **named: Any) -> Any:
        if away:
            raise away[0]
        return read_object(*given, **named)

    monkeypatch.setattr(stages, "read_object", read)
    result, attempts, notes = attempt_all(run, "never")
    assert isinstance(result, InfrastructureError)
    assert attempts == []
    told = f"3: no attempt could begin: InfrastructureError: {result}"
    assert [note for note in notes if note.startswith("3: ")] == [told] * 2

    stop = progress.listen(lambda event: away.clear() if event.event == "given up" else None)
    try:
        assert attempt_all(run, "manifest")[:2] == ("manifest", [0])
    finally:
        stop()


# After a commit ---------------------------------------------------------------------------------------------------


def after_commit(run: CampaignRun, monkeypatch, *outcomes: Exception | None) -> list[tuple[int | None, str]]:
    """What people are told when what follows a commit goes as told."""
    left, told = iter(outcomes), []

    @task(**TASK)
    def track(campaign: str, iteration: int) -> None:
        with logged("track", iteration):
            if (outcome := next(left)) is not None:
                raise outcome

    @flow(validate_parameters=False)
    def drive() -> None:
        campaign._follow_up(run)

    monkeypatch.setattr(campaign, "track", track)
    stop = progress.listen(lambda event: told.append((event.iteration, event.note)))
    try:
        drive()
    finally:
        stop()
    return told


def test_what_follows_a_commit_is_tried_again_and_then_left(run, monkeypatch):
    away, slow = InfrastructureError("away"), TimeoutError("slow")
    assert after_commit(run, monkeypatch, away, None) == [(2, "track failed: away")]
    assert after_commit(run, monkeypatch, away, slow, away) == [
        (2, "track failed: away"),
        (2, "track failed: slow"),
        (2, "track failed: away"),
        (2, "track was left undone: away"),
    ]
    with pytest.raises(ConfigError, match="no right"):
        after_commit(run, monkeypatch, ConfigError("no right"))


def test_a_resumed_campaign_does_what_a_crash_kept_from_following_the_last_commit(tmp_path):
    values = {"campaign": "demo", "root": str(tmp_path / "runs"), "iterations": 2, "recovery": RECOVERY}
    config = build_config({**values, "storage": {"optimizer_states": 1}})
    store = open_campaign(config.root, config.campaign, config.model_dump(mode="json"))
    chain = make_chain(store, tmp_path, 3)
    assert run_campaign(config) == chain  # all its iterations are there
    assert pruned(store) == {manifest.policy.files[1].path for manifest in chain[:2]}
    assert [Path(location(store, m.policy.files[1].path)).exists() for m in chain] == [False, False, True]
    assert list(local_folder(store, "tensorboard").iterdir()) != []


@pytest.fixture
def finished(tmp_path):
    """The config and store of a campaign whose iterations are all committed: a run of it takes its lease and ends."""
    values = {"campaign": "demo", "root": str(tmp_path / "runs"), "iterations": 1}
    config = build_config({**values, "recovery": {**RECOVERY, "lease_ttl_s": 1.0}})
    store = open_campaign(config.root, config.campaign, config.model_dump(mode="json"))
    make_chain(store, tmp_path, 2)
    return config, store


def away_for(times: int, ask: Any, part: str, told: list[str]) -> Any:
    """`ask`, which is away so many times after it was asked for something with `part` in its name."""

    def asked(address: objects.Address, *rest: Any) -> Any:
        result = ask(address, *rest)
        if part in str(address):
            told.append(part)
            if len(told) <= times:
                raise InfrastructureError("the store is away")
        return result

    return asked


@pytest.mark.parametrize(("times", "asked"), [(2, 3), (3, 3)])
def test_the_lease_is_asked_for_as_often_as_a_stage_is_tried(finished, monkeypatch, times, asked):
    config, store = finished
    told: list[str] = []
    monkeypatch.setattr(objects, "list_objects", away_for(times, objects.list_objects, "/_lease", told))
    if times < asked:
        assert len(run_campaign(config)) == 2
    else:
        with pytest.raises(InfrastructureError, match="the store is away"):
            run_campaign(config)
    assert len(told) == asked
    assert stored_paths(store, "_lease") == ["_lease/000001.json"][: times < asked]


def test_a_lease_whose_answer_was_lost_is_waited_for_and_then_held_alone(finished, monkeypatch):
    config, store = finished
    monkeypatch.setattr(objects, "create_only", away_for(1, objects.create_only, "/_lease", []))
    assert len(run_campaign(config)) == 2
    assert stored_paths(store, "_lease") == ["_lease/000001.json", "_lease/000002.json"]
    (holder, _) = status(store) or pytest.fail("no lease")
    assert (holder.iterations, holder.ttl_s, holder.released) == (1, 1.0, True)


@pytest.mark.parametrize(("panel", "told"), [(2, []), (4, ["--set iterations=3"])])
def test_a_campaign_that_ends_without_its_final_evaluation_says_what_to_do(tmp_path, panel, told):
    """As where it was planned for more iterations: the last one has no evaluation, or that of a smaller panel."""
    values = {"campaign": "demo", "root": str(tmp_path / "runs"), "iterations": 2, "recovery": RECOVERY}
    config = build_config({**values, "evaluation": {"tasks": 2, "final_tasks": panel, "temperatures": [0.5, 1.0]}})
    store = open_campaign(config.root, config.campaign, config.model_dump(mode="json"))
    chain = make_chain(store, tmp_path, 2)
    rows = {name: valid_rows()[name] for name in ("scores", "metrics", "evaluations")}
    commit(store, make_manifest(store, tmp_path, chain[-1], rows))
    notes: list[str] = []
    stop = progress.listen(lambda event: notes.append(event.note) if event.event == "fault" else None)
    try:
        run_campaign(config)
    finally:
        stop()
    assert re.findall(r"--set iterations=\d+", " ".join(notes)) == told


def test_an_iteration_counts_from_the_commit_before_with_what_followed_that(tmp_path, monkeypatch):
    values = {"campaign": "demo", "root": str(tmp_path / "runs"), "recovery": RECOVERY, "iterations": 2}
    config = build_config(values)
    store = open_campaign(config.root, config.campaign, config.model_dump(mode="json"))
    began_s, committed_s = [], []

    def run_iteration(name: str, iteration: int, attempt: int, degrade: bool):
        began_s.append(campaign_run(name).since_s)
        before = manifests(store)[-1] if iteration else None
        return commit(store, make_manifest(store, tmp_path, before))[0]

    monkeypatch.setattr(campaign, "run_iteration", run_iteration)
    monkeypatch.setattr(
        campaign.notify, "committed", lambda config, store, made: committed_s.append(campaign_run("demo").since_s)
    )
    run_campaign(config)
    assert began_s[1:] == committed_s[:2]


# Interrupts -------------------------------------------------------------------------------------------------------


def interrupted() -> None:
    raise KeyboardInterrupt


def interrupted_in_prefect() -> None:
    """As Prefect is where Ctrl-C comes while it begins a task run, before that run has an id."""
    try:
        raise KeyboardInterrupt
    finally:
        raise ValueError("Task run is not set")


@pytest.mark.parametrize("interrupt", [interrupted, interrupted_in_prefect])
def test_an_interrupt_marks_the_run_and_those_around_it_cancelled_with_its_reason(prefect_server, interrupt):
    ids: list[Any] = []

    @flow
    def inner() -> None:
        from prefect.runtime import flow_run

        with cancelled_by_interrupt():
            ids.append(flow_run.id)
            interrupt()

    @flow
    def outer() -> None:
        from prefect.runtime import flow_run

        with cancelled_by_interrupt():
            ids.append(flow_run.id)
            inner()

    with pytest.raises(KeyboardInterrupt):
        outer()
    with get_client(sync_client=True) as client:
        states = [client.read_flow_run(flow_run_id).state for flow_run_id in ids]
    assert [state and state.name for state in states] == ["Cancelled", "Cancelled"]
    assert all(state and state.message and state.message.startswith("Interrupted (Ctrl-C)") for state in states)
