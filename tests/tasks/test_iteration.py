"""Stages as tasks that survive faults, under a real Prefect API; and what an iteration keeps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from prefect import Task, flow, task
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import LogFilter
from prefect.logging.handlers import APILogHandler
from prefect.settings import PREFECT_RESULTS_PERSIST_BY_DEFAULT, temporary_settings

from infra import stages
from infra.hosting import HostedGroup
from infra.store import location, manifests, open_campaign, read_table
from opid_core.config import RecoveryConfig, build_config
from opid_core.errors import (
    AttemptUnusable,
    ConfigError,
    DataError,
    FailureBudgetExceeded,
    GateError,
    InfrastructureError,
    NumericsError,
    OutOfMemory,
)
from opid_core.schema import from_rows
from tasks import progress
from tasks.iteration import TASK, CampaignRun, Iteration, configured, retry_delays_s, stage
from tasks.store import count_attempts
from tests.factories import make_chain, make_manifest, valid_rows

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("prefect_server")]

RECOVERY = {"stage_retries": 2, "retry_delay_s": 0.0, "stage_timeout_s": 300.0}


def new_run(root: Path, **values: Any) -> CampaignRun:
    config = build_config({"campaign": "demo", "root": str(root), "recovery": RECOVERY, **values})
    return CampaignRun(config, open_campaign(config.root, config.campaign, config.model_dump(mode="json")))


@pytest.fixture
def run(tmp_path) -> Iterator[CampaignRun]:
    with new_run(tmp_path / "runs") as run:
        run.begin(0, 0)
        yield run


def metrics_table(value: float) -> pa.Table:
    return from_rows("metrics", [{"iteration": 0, "name": "rollout/return", "value": value}])


def stage_task(body: Callable[[Iteration], None]) -> Task[[str, Any, int], None]:
    @task(name="rollout", **TASK)
    def rollout(campaign: str, iteration: Any, attempt: int) -> None:
        with stage("rollout", campaign, iteration, attempt) as it:
            if not it.is_reused:
                body(it)

    return rollout


def counting_stage(*outcomes: Exception | float) -> tuple[Task[[str, Any, int], None], list[int]]:
    """A stage that fails or succeeds as told, and the list of its calls."""
    calls: list[int] = []

    def body(it: Iteration) -> None:
        outcome = outcomes[len(calls)]
        calls.append(it.attempt)
        if isinstance(outcome, Exception):
            raise outcome
        it.write("metrics", metrics_table(outcome), iteration=0)

    return stage_task(body), calls


def call(run: CampaignRun, task: Task[[str, Any, int], None]) -> Iteration:
    it = run.iteration
    assert it is not None
    configured(task, run.config)("demo", it.number, it.attempt)
    return it


def value_of(it: Iteration) -> float:
    (row,) = read_table(it.store, it.results["rollout"].tables["metrics"]).to_pylist()
    return row["value"]


# Records ----------------------------------------------------------------------------------------------------------


def test_a_finished_stage_is_not_run_again(run):
    task, calls = counting_stage(0.5, 0.7)
    first = call(run, task)
    run.begin(0, 0)  # as after a restart
    again = call(run, task)
    assert calls == [0]
    assert (first.reused_stages, again.reused_stages) == (set(), {"rollout"})
    assert again.results == first.results
    assert value_of(again) == 0.5
    # Another attempt at the iteration begins from nothing.
    run.begin(0, 1)
    assert value_of(call(run, task)) == 0.7
    assert calls == [0, 1]


@pytest.mark.parametrize("persisted", [False, True])
def test_no_result_comes_from_a_cache_of_prefect(run, persisted):
    task, calls = counting_stage(0.5, 0.7)
    with temporary_settings({PREFECT_RESULTS_PERSIST_BY_DEFAULT: persisted}):
        assert configured(count_attempts, run.config)("demo", 0) == 0
        call(run, task)
        stages.give_up(run.store, 0, 0, "lost")
        assert configured(count_attempts, run.config)("demo", 0) == 1
        Path(location(run.store, "_stages/000000/000/rollout.json")).unlink()
        run.begin(0, 0)
        assert value_of(call(run, task)) == 0.7
    assert calls == [0, 0]


def test_another_run_that_was_faster_is_adopted(run, tmp_path):
    fast, _ = counting_stage(0.5)

    def overtaken(it: Iteration) -> None:
        with new_run(tmp_path / "runs") as other:
            other.begin(0, 0)
            call(other, fast)
        it.write("metrics", metrics_table(0.7), iteration=0)  # it does its work, too late

    it = call(run, stage_task(overtaken))
    assert it.reused_stages == {"rollout"}
    assert value_of(it) == it.table("metrics")["value"][0].as_py() == 0.5


@pytest.mark.parametrize("damage", ["missing", "changed"])
def test_a_record_whose_files_are_not_whole_ends_the_attempt(run, damage):
    task, calls = counting_stage(0.5)
    part = Path(location(run.store, call(run, task).results["rollout"].tables["metrics"].path))
    data = bytearray(part.read_bytes())
    data[40] ^= 1
    part.unlink()
    if damage == "changed":
        part.write_bytes(data)
    run.begin(0, 0)
    with pytest.raises(AttemptUnusable, match="stage rollout of iteration 0 cannot be reused") as error:
        call(run, task)
    assert str(part) in str(error.value)
    assert calls == [0]


def test_an_evaluation_of_another_panel_than_is_due_ends_the_attempt(tmp_path):
    """The iteration was one of several when it was evaluated, and is the last one now."""

    @task(name="evaluate", **TASK)
    def play(campaign: str, iteration: Any, attempt: int) -> None:
        with stage("evaluate", campaign, iteration, attempt):
            pass

    def reused(iterations: int) -> set[str]:
        evaluation = {"tasks": 2, "final_tasks": 4, "every": 1}
        with new_run(tmp_path / "runs", iterations=iterations, evaluation=evaluation) as run:
            run.chain += manifests(run.store) or make_chain(run.store, tmp_path, 1)
            run.begin(1, 0)
            return call(run, play).reused_stages

    assert reused(3) == set()
    assert reused(2) == {"evaluate"}
    with pytest.raises(AttemptUnusable, match="made from another panel"):
        reused(1)


def test_tables_stay_in_memory_until_a_resume(run):
    tables = {name: from_rows(name, rows) for name, rows in valid_rows().items()}

    def body(it: Iteration) -> None:
        for name in ("steps", "trajectories", "skills", "routes"):
            it.write(name, tables[name], tables, max_failure_rate=0.5)

    task, campaign = stage_task(body), Path(location(run.store))
    it = call(run, task)
    for name in it.results["rollout"].tables:
        (campaign / name).rename(campaign / f"{name}.away")
    assert it.table("steps") is tables["steps"]
    samples = it.samples
    assert samples is it.samples
    assert samples.texts("route") == ["step", "episode", "none"]
    assert list(samples.won) == [True, True, False]
    for name in it.results["rollout"].tables:
        (campaign / f"{name}.away").rename(campaign / name)
    run.begin(0, 0)
    resumed = call(run, task)
    assert resumed.table("steps") is not tables["steps"]
    assert resumed.samples.table.equals(samples.table)


def test_a_stage_that_is_left_open_is_gone_on_with_and_recorded_at_its_end(run):
    calls: list[bool] = []

    def body(it: Iteration) -> None:
        calls.append(it.is_left_open)
        if not it.is_left_open:
            it.write("metrics", metrics_table(0.5), iteration=0)
            it.metrics["seconds/rollout_s"] = 10.0
            it.leave_open()
            return
        it.go_on()
        with it.timed("seconds/rollout_s"):
            pass

    task = stage_task(body)
    it = call(run, task)
    assert set(it.results) == {"rollout"}
    assert stages.finished(run.store, 0, 0) == set()
    first_s = it.results["rollout"].metrics["seconds/stage/rollout_s"]
    assert call(run, task) is it
    assert calls == [False, True]
    assert stages.finished(run.store, 0, 0) == {"rollout"}
    assert value_of(it) == 0.5
    numbers = it.results["rollout"].metrics
    assert 10.0 <= (numbers["seconds/rollout_s"] or 0.0) < 11.0
    assert (numbers["seconds/stage/rollout_s"] or 0.0) > (first_s or 0.0)


def test_what_was_played_ahead_is_reused_where_it_follows_the_same_content_in_the_same_attempt(run, tmp_path):
    first, other = (make_manifest(run.store, tmp_path, None, weights=weights) for weights in (b"one", b"two"))
    for attempt, (expected, committed, begun, reused) in enumerate(
        [(first, first, 0, True), (first, other, 0, False), (first, first, 1, False)]
    ):
        run.begin(0, attempt)
        task, calls = counting_stage(0.5, 0.7, 0.9)
        run.begin_ahead(expected, 10 * attempt)
        configured(task, run.config)("demo", 1, 10 * attempt)
        assert run.ahead is not None
        assert (run.ahead.number, run.ahead.policy) == (1, expected.policy)
        table = run.ahead.table("metrics")
        run.chain[:] = [committed]
        it = run.begin(1, 10 * attempt + begun)
        assert run.ahead is None
        if committed == other:
            with pytest.raises(AttemptUnusable, match="made from another parent"):
                call(run, task)
        else:
            call(run, task)
            assert (it.reused_stages == {"rollout"}, it.table("metrics") is table) == (reused, reused)
            assert len(calls) == (1 if reused else 2)
        run.chain.clear()


# Faults -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [InfrastructureError("storage away"), TimeoutError("slow")])
def test_a_fault_that_may_pass_is_tried_again_and_told_with_stage_and_iteration(run, tmp_path, fault):
    run.chain += make_chain(run.store, tmp_path, 3)
    run.begin(3, 0)
    task, calls = counting_stage(fault, fault, 0.5)
    told: list[progress.Progress] = []
    stop = progress.listen(told.append)
    call(run, task)
    stop()
    assert len(calls) == 3
    faults = [(event.iteration, event.stage, event.note) for event in told if event.event == "fault"]
    assert faults == [(3, "rollout", f"rollout failed: {fault}")] * 2


def test_tries_end(run):
    task, calls = counting_stage(*[InfrastructureError("storage away")] * 4)
    with pytest.raises(InfrastructureError, match="storage away"):
        call(run, task)
    assert len(calls) == 1 + 2


@pytest.mark.parametrize(
    "error", [DataError("bad file"), ConfigError("bad key"), GateError("rows"), NumericsError("nan"), KeyError("bug")]
)
def test_what_will_come_again_is_not_tried_again(run, error):
    task, calls = counting_stage(error, 0.5)
    with pytest.raises(type(error)):
        call(run, task)
    assert len(calls) == 1


def test_a_stage_that_hangs_is_ended_with_its_processes_and_tried_again(tmp_path):
    groups: list[HostedGroup] = []

    def body(it: Iteration) -> None:
        groups.append(HostedGroup("counter", "tests.hosted:Counter", 5))
        groups[-1].call("add", 1)
        if len(groups) == 1:
            groups[-1].call("hang")
        groups[-1].kill()

    told: list[str] = []
    stop = progress.listen(lambda event: told.append(event.note))
    with new_run(tmp_path / "runs", recovery={"stage_timeout_s": 8.0, "retry_delay_s": 0.0}) as run:
        run.begin(0, 0)
        call(run, stage_task(body))
    stop()
    assert len(groups) == 2
    assert all(group.process.poll() is not None for group in groups)
    (note,) = [note for note in told if "time limit" in note]
    assert note.startswith("rollout failed: ended by its time limit after ")


def test_out_of_memory_makes_the_next_micro_batch_smaller_in_this_campaign_alone(run, tmp_path):
    task, _ = counting_stage(OutOfMemory("too large"), OutOfMemory("too large"), 0.5)
    assert run.workers.micro_batch_tokens == 16384
    call(run, task)
    assert run.workers.micro_batch_tokens == 4096
    assert new_run(tmp_path / "another").workers.micro_batch_tokens == 16384


def test_delays_double_are_spread_and_bounded():
    delays = retry_delays_s(RecoveryConfig(stage_retries=50, retry_delay_s=2.0))
    for delay, least in zip(delays, (2, 4, 8, 16, 32), strict=False):
        assert least <= delay <= 1.5 * least
    assert sum(delays[:5]) >= 60  # a store that is away for a minute is waited for
    assert len(delays) == 50
    assert 600 <= delays[-1] <= max(delays) <= 900


def test_a_degraded_iteration_lets_the_gate_record_the_budget(run):
    tables = {name: from_rows(name, rows) for name, rows in valid_rows().items()}
    with pytest.raises(FailureBudgetExceeded):
        run.begin(0, 0).write("skills", tables["skills"], tables, max_failure_rate=0.1)
    it = run.begin(0, 0, degrade=True)
    call(run, stage_task(lambda it: it.write("skills", tables["skills"], tables, max_failure_rate=0.1)))
    result = it.results["rollout"]
    assert result.gates[0].degraded == ("more than 10.0% of the analyses failed (1 of 2 rows)",)
    assert result.tables["skills"].rows == 3


def test_a_task_outside_of_its_campaigns_flow_says_so(run):
    task, calls = counting_stage(0.5)
    for names in (("other", 0, 0), ("demo", 0, 1), ("demo", 1, 0)):
        with pytest.raises(ConfigError, match="campaign '"):
            task(*names)
    assert calls == []


# What Prefect shows -----------------------------------------------------------------------------------------------


def test_the_flow_runs_log_has_begin_progress_fault_and_end_and_a_long_stage_its_artifact(run, monkeypatch):
    for limit in ("LOG_EVERY_S", "ARTIFACT_AFTER_S", "ARTIFACT_EVERY_S"):
        monkeypatch.setattr(progress, limit, 0.0)
    faults = [InfrastructureError("storage away")]

    def body(it: Iteration) -> None:
        it.progress(3, 4, "half won")
        if faults:
            raise faults.pop()

    @flow
    def campaign() -> str:
        from prefect.runtime import flow_run

        call(run, stage_task(body))
        return str(flow_run.id)

    flow_run_id = campaign()
    APILogHandler().flush()
    with get_client(sync_client=True) as client:
        logs = client.read_logs(LogFilter.model_validate({"flow_run_id": {"any_": [flow_run_id]}}))
        artifacts = client.request(
            "POST", "/artifacts/filter", json={"artifacts": {"flow_run_id": {"any_": [flow_run_id]}}}
        ).json()
    messages = [log.message for log in logs]
    assert messages.count("rollout of iteration 0 begins") == 2
    assert messages.count("rollout: 3 of 4 half won") == 2
    assert messages.count("rollout failed: storage away") == 1
    assert len([message for message in messages if message.startswith("rollout of iteration 0 ended")]) == 1
    assert [(one["type"], one["key"], one["data"]) for one in artifacts if one["data"] == 100.0] == [
        ("progress", "progress-demo", 100.0)
    ]


def test_what_this_process_committed_is_not_read_back(run, tmp_path):
    tables = {name: from_rows(name, rows) for name, rows in valid_rows().items()}

    def body(it: Iteration) -> None:
        for name in ("steps", "trajectories", "skills"):
            it.write(name, tables[name], tables, max_failure_rate=0.5)

    records = call(run, stage_task(body)).results["rollout"].tables
    for record in records.values():
        (Path(location(run.store)) / record.path).unlink()
    assert run.table(records["steps"], ["step"]).equals(tables["steps"].select(["step"]))
    run.begin(1, 0)  # of the iteration before only the skills are still there
    assert run.table(records["skills"], ["text"]).equals(tables["skills"].select(["text"]))
    with pytest.raises(DataError):
        run.table(records["steps"], ["step"])
