"""What makes a stage of a function: records, retries, time limits; under a real Prefect API."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from flows.campaign import attempted, run_campaign
from infra import stages
from infra.hosting import HostedGroup
from infra.store import CampaignStore, local_folder, location, open_campaign, pruned, read_table
from opid_core.config import RecoveryConfig, build_config
from opid_core.errors import (
    AttemptUnusable,
    ConfigError,
    DataError,
    FailureBudgetExceeded,
    GateError,
    InfrastructureError,
    LeaseLost,
    NumericsError,
    OutOfMemory,
)
from opid_core.schema import from_rows
from tasks import progress, workers
from tasks.context import Place, StageResult
from tasks.stage import leniently, retry_delays_s, save, stage
from tests.infra.stored import make_chain
from tests.tasks.gates.valid_tables import valid

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("prefect_server")]

RECOVERY = {"stage_retries": 2, "retry_delay_s": 0.0, "stage_timeout_s": 30.0, "iteration_attempts": 2}


@pytest.fixture
def place(tmp_path) -> Place:
    values = {"campaign": "demo", "root": str(tmp_path / "runs"), "recovery": RECOVERY}
    config = build_config(values)
    store = open_campaign(config.root, config.campaign, config.model_dump(mode="json"))
    return Place(config, store, 3, seed=1, parent="parent", attempt=0, since_s=time.monotonic())


def metrics_table(value: float) -> pa.Table:
    return from_rows("metrics", [{"iteration": 3, "name": "rollout/return", "value": value}])


def counting_stage(*outcomes: Exception | float):
    """A stage that fails or succeeds as told, and the list of its calls."""
    calls: list[int] = []

    @stage("rollout")
    def run(place: Place) -> StageResult:
        outcome = outcomes[len(calls)]
        calls.append(1)
        if isinstance(outcome, Exception):
            raise outcome
        return save(place, "metrics", metrics_table(outcome), {}, iteration=3)

    return run, calls


def test_a_finished_stage_is_not_run_again(place):
    run, calls = counting_stage(0.5, 0.7)
    first = run(place)
    again = run(place)
    assert len(calls) == 1
    assert (first.reused, again.reused) == (False, True)
    assert again.tables == first.tables
    assert again.metrics == first.metrics
    assert read_table(place.store, again.tables["metrics"]).to_pylist()[0]["value"] == 0.5
    # Another attempt at the iteration begins from nothing.
    assert run(replace(place, attempt=1)).reused is False
    assert len(calls) == 2


def test_another_run_that_was_faster_is_adopted(place):
    (fast, _), (slow, _) = counting_stage(0.5), counting_stage(0.7)

    @stage("rollout")
    def overtaken(place: Place) -> StageResult:
        fast(place)
        return slow.__wrapped__.__wrapped__(place)  # it does its work, too late

    result = overtaken(place)
    assert result.reused is True
    assert read_table(place.store, result.tables["metrics"]).to_pylist()[0]["value"] == 0.5


@pytest.mark.parametrize("damage", ["missing", "changed"])
def test_a_record_whose_files_are_not_whole_ends_the_attempt(place, damage):
    run, calls = counting_stage(0.5)
    part = location(place.store, run(place).tables["metrics"].path)
    data = bytearray(Path(part).read_bytes())
    data[40] ^= 1
    Path(part).unlink()
    if damage == "changed":
        Path(part).write_bytes(data)
    with pytest.raises(AttemptUnusable, match="stage rollout of iteration 3 cannot be reused") as error:
        run(place)
    assert part in str(error.value)
    assert len(calls) == 1


@pytest.mark.parametrize("fault", [InfrastructureError("storage away"), TimeoutError("slow")])
def test_a_fault_that_may_pass_is_tried_again(place, fault):
    run, calls = counting_stage(fault, fault, 0.5)
    assert run(place).tables
    assert len(calls) == 3


def test_tries_end(place):
    run, calls = counting_stage(*[InfrastructureError("storage away")] * 4)
    with pytest.raises(InfrastructureError, match="storage away"):
        run(place)
    assert len(calls) == 1 + 2


@pytest.mark.parametrize(
    "error", [DataError("bad file"), ConfigError("bad key"), GateError("rows"), NumericsError("nan"), KeyError("bug")]
)
def test_what_will_come_again_is_not_tried_again(place, error):
    run, calls = counting_stage(error, 0.5)
    with pytest.raises(type(error)):
        run(place)
    assert len(calls) == 1


def test_a_stage_that_hangs_is_ended_with_its_processes_and_tried_again(place):
    place = replace(place, config=build_config({**place.config.model_dump(), "recovery": {"stage_timeout_s": 2.0}}))
    groups: list[HostedGroup] = []

    @stage("rollout")
    def run(place: Place) -> StageResult:
        groups.append(HostedGroup("counter", "tests.hosted:Counter", 5))
        groups[-1].call("add", 1)
        if len(groups) == 1:
            groups[-1].call("hang")
        groups[-1].kill()
        return StageResult()

    run(place)
    assert len(groups) == 2
    assert all(group.process.poll() is not None for group in groups)


def test_out_of_memory_makes_the_next_micro_batch_smaller(place, monkeypatch):
    monkeypatch.setattr(workers, "_halvings", 0)
    run, _ = counting_stage(OutOfMemory("too large"), OutOfMemory("too large"), 0.5)
    assert workers.micro_batch_tokens(place.config) == 16384
    run(place)
    assert workers.micro_batch_tokens(place.config) == 4096


def test_delays_double_and_are_spread():
    delays = retry_delays_s(RecoveryConfig(stage_retries=5, retry_delay_s=2.0))
    for delay, least in zip(delays, (2, 4, 8, 16, 32), strict=True):
        assert least <= delay <= 1.5 * least
    assert sum(delays) >= 60  # a store that is away for a minute is waited for


# Attempts at an iteration -----------------------------------------------------------------------------------------


def attempt_all(place: Place, *outcomes: Exception | str) -> tuple[str | Exception, list[int], list[str]]:
    """The result of `attempted`, the attempts that were made (-1: one that may degrade), and what people were told."""
    attempts, notes = [], []
    left = iter(outcomes)

    def run(attempt: int, degrade: bool):
        attempts.append(-1 if degrade else attempt)
        outcome = next(left)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    stop = progress.listen(lambda event: notes.append(event.note))
    try:
        return attempted(place.config, place.store, 3, run), attempts, notes  # type: ignore[arg-type, return-value]
    except Exception as error:
        return error, attempts, notes
    finally:
        stop()


def reasons(store: CampaignStore) -> list[str]:
    return [failure["reason"] for failure in stages.failures(store, 3)]


def test_a_failed_iteration_is_tried_whole_as_an_attempt_of_its_own(place):
    result, attempts, notes = attempt_all(place, InfrastructureError("engine died"), "manifest")
    assert (result, attempts) == ("manifest", [0, 1])
    assert reasons(place.store) == ["InfrastructureError: engine died"]
    assert notes == ["3: attempt 1 given up: InfrastructureError: engine died"]


def test_a_campaign_stops_after_its_attempts_and_a_new_run_has_as_many(place):
    failing = [GateError("too many failed analyses"), TimeoutError("slow")]
    result, attempts, _ = attempt_all(place, *failing)
    assert isinstance(result, TimeoutError)
    assert attempts == [0, 1]
    assert reasons(place.store) == ["GateError: too many failed analyses", "TimeoutError: slow"]
    result, attempts, _ = attempt_all(place, InfrastructureError("again"), "manifest")
    assert (result, attempts) == ("manifest", [2, 3])


def test_only_an_exceeded_failure_budget_degrades_once_and_only_where_the_config_says_so(place):
    exceeded = FailureBudgetExceeded("failed analyses")
    result, attempts, _ = attempt_all(place, exceeded, exceeded, "manifest")
    assert (result, attempts) == (exceeded, [0, 1])
    place = replace(place, config=build_config({**place.config.model_dump(), "gates": {"on_exhausted": "degrade"}}))
    result, attempts, _ = attempt_all(place, exceeded, exceeded, "degraded")
    assert (result, attempts) == ("degraded", [2, 3, -1])
    bad_rows = GateError("rows")
    result, attempts, _ = attempt_all(place, exceeded, bad_rows, "never")
    assert (result, attempts) == (bad_rows, [4, 5])
    result, attempts, _ = attempt_all(place, exceeded, exceeded, bad_rows, "never")
    assert (result, attempts) == (bad_rows, [6, 7, -1])


def test_a_degraded_place_lets_the_gate_record_the_budget(place):
    tables = {name: from_rows(name, rows) for name, rows in valid().items()}
    with pytest.raises(FailureBudgetExceeded):
        save(place, "skills", tables["skills"], tables, max_failure_rate=0.1)
    result = save(replace(place, degrade=True), "skills", tables["skills"], tables, max_failure_rate=0.1)
    assert result.gates[0].degraded == ("more than 10.0% of the analyses failed (1 of 2 rows)",)
    assert result.tables["skills"].rows == 3


def test_records_that_cannot_be_used_cost_no_attempt(place):
    unusable = [AttemptUnusable("damaged")] * 3
    result, attempts, _ = attempt_all(place, *unusable, InfrastructureError("x"), "manifest")
    assert (result, attempts) == ("manifest", [0, 1, 2, 3, 4])


def test_bad_data_stops_at_once_and_says_why(place):
    result, attempts, _ = attempt_all(place, DataError("games.jsonl: line 3"), "never")
    assert isinstance(result, DataError)
    assert attempts == [0]
    assert reasons(place.store) == ["DataError: games.jsonl: line 3"]


def test_a_lost_lease_leaves_the_attempt_to_the_new_holder(place):
    result, attempts, _ = attempt_all(place, LeaseLost("taken over"))
    assert isinstance(result, LeaseLost)
    assert attempts == [0]
    assert reasons(place.store) == []


def test_a_store_that_is_away_when_the_attempts_are_counted_costs_attempts(place):
    """The folder of the records is a link to itself: every look at it is a fault of the disk, until it is mended."""
    records = Path(location(place.store, "_stages"))
    records.symlink_to(records)
    result, attempts, notes = attempt_all(place, "never")
    assert isinstance(result, InfrastructureError)
    assert attempts == []
    assert [note for note in notes if note.startswith("3: ")] == [f"3: no attempt could begin: {_named(result)}"] * 2

    stop = progress.listen(lambda event: records.unlink(missing_ok=True) if event.stage == "given up" else None)
    try:
        assert attempt_all(place, "manifest")[:2] == ("manifest", [0])
    finally:
        stop()


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


# After a commit ---------------------------------------------------------------------------------------------------


def after_commit(place: Place, *outcomes: Exception | None) -> list[str]:
    """What people are told when what follows a commit goes as told."""
    left, notes = iter(outcomes), []

    def function() -> None:
        if (outcome := next(left)) is not None:
            raise outcome

    stop = progress.listen(lambda event: notes.append(event.note))
    try:
        leniently(place.config.recovery, "track", function)
    finally:
        stop()
    return notes


def test_what_follows_a_commit_is_tried_again_and_then_left(place):
    away, slow = InfrastructureError("away"), TimeoutError("slow")
    assert after_commit(place, away, None) == ["track failed: away"]
    assert after_commit(place, away, slow, away) == [
        "track failed: away",
        "track failed: slow",
        "track failed: away",
        "track was left undone: away",
    ]
    with pytest.raises(ConfigError, match="no right"):
        after_commit(place, ConfigError("no right"))


def test_a_resumed_campaign_does_what_a_crash_kept_from_following_the_last_commit(tmp_path):
    values = {"campaign": "demo", "root": str(tmp_path / "runs"), "iterations": 2, "recovery": RECOVERY}
    config = build_config({**values, "storage": {"optimizer_states": 1}})
    store = open_campaign(config.root, config.campaign, config.model_dump(mode="json"))
    chain = make_chain(store, tmp_path, 3)
    assert run_campaign(config) == chain  # all its iterations are there
    assert pruned(store) == {manifest.policy.files[1].path for manifest in chain[:2]}
    assert [Path(location(store, m.policy.files[1].path)).exists() for m in chain] == [False, False, True]
    assert list((local_folder(store) / "tensorboard").iterdir()) != []
