"""A work pool has one `opid serve` of this machine, which starts again what died before it ran."""

from __future__ import annotations

import subprocess
import sys
from datetime import datetime, timedelta
from uuid import uuid4

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.states import Crashed, Pending, Scheduled
from rich.console import Console

from infra import work_pool
from infra.work_pool import NEVER_RAN_LIMIT_S, alone, ensure, requeue
from opid_core.errors import ConfigError

HOLD = """
import sys
from uuid import UUID
from infra.work_pool import alone
with alone("opid", UUID(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_pool_is_served_once_until_whoever_serves_it_is_gone():
    pool_id = uuid4()
    command, pipe = [sys.executable, "-c", HOLD, str(pool_id)], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ConfigError) as refused, alone("opid", pool_id):
            pass
        with alone("opid", uuid4()):  # of the same name, on another server
            pass
        other.kill()
    assert str(refused.value) == (
        f"work pool 'opid': another `opid serve` (process {other.pid}) serves it on this machine: stop it, or choose "
        "another --pool"
    )
    for _ in range(2):
        with alone("opid", pool_id):
            pass


@flow
def train() -> None: ...


@pytest.mark.integration
def test_a_run_that_dies_before_it_ran_is_started_again_for_half_an_hour_from_its_first_try(
    prefect_server, monkeypatch
):
    clock: list[datetime] = []

    class Clock(datetime):
        @classmethod
        def now(cls, tz=None):
            return clock[-1]

    monkeypatch.setattr(work_pool, "datetime", Clock)
    limit, a_second = timedelta(seconds=NEVER_RAN_LIMIT_S), timedelta(seconds=1)
    with get_client(sync_client=True) as client:
        ensure(client, "waits")
        run = client.create_flow_run(train, state=Scheduled(), work_pool_name="waits")

        def dies() -> None:
            for state in (Pending(), Crashed()):
                client.set_flow_run_state(run.id, state, force=True)

        def state_at(now: datetime) -> str | None:
            clock.append(now)
            requeue(client, "waits", 10, Console(quiet=True))
            return client.read_flow_run(run.id).state_name

        dies()
        (first,) = [state.timestamp for state in client.read_flow_run_states(run.id) if state.is_pending()]
        assert run.created is not None
        waited = first - run.created  # in the queue: milliseconds here, days with a schedule
        assert state_at(first + limit - waited / 2) == "AwaitingRetry"
        dies()
        assert state_at(first + limit) == "Crashed"
        assert state_at(first + limit - a_second) == "AwaitingRetry"
