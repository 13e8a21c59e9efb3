"""The process work pool of `opid serve`: how runs are started, and what becomes of those whose worker is gone."""

from __future__ import annotations

import shlex
import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from uuid import UUID

from rich.console import Console

from infra.automations import HEARTBEAT_S
from infra.processes import PYTHON
from opid_core.errors import ConfigError

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun

_PYTHON = shlex.quote(sys.executable)
JOB_VARIABLES = {
    # The run dies with the worker, however that ends: a worker that comes back would not know it.
    "command": shlex.join(["sh", "-c", f"exec {_PYTHON} -m infra.processes $PPID {_PYTHON} -m prefect.engine"]),
    "env": {**PYTHON, "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_S)},
}
"""What a deployment on such a pool sets."""
_PEER = struct.Struct("=i8x")
"""The process of a `struct ucred`, without user and group."""
MISSED_AFTER_S = 30.0  # the automation acts after 15 s: its own wait, and the server looks every 5 s
NEVER_RAN_LIMIT_S = 1800.0


def worker_name(pool: str) -> str:
    """This machine's worker: the same after a restart."""
    return f"{pool}-{socket.gethostname()}"


def ensure(client: SyncPrefectClient, name: str) -> UUID:
    """Create the process work pool, for one campaign at a time; returns its id. One that exists stays as it is.

    Raises ConfigError where another machine serves it: the runs of a pool are queued again when its worker starts.
    """
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectNotFound
    from prefect.workers.process import ProcessWorker

    try:
        existing = client.read_work_pool(name)
    except ObjectNotFound:
        template = ProcessWorker.get_default_base_job_template()
        new = WorkPoolCreate(name=name, type="process", base_job_template=template, concurrency_limit=1)
        return client.create_work_pool(new).id
    if existing.type != "process":
        raise ConfigError(f"work pool {name!r}: is of type {existing.type}, must be process; choose another --pool")
    for worker in client.read_workers_for_work_pool(name):
        if worker.name != worker_name(name) and worker.status == "ONLINE":
            raise ConfigError(f"work pool {name!r}: served by worker {worker.name}; give each machine its own --pool")
    return existing.id


@contextmanager
def alone(pool: str, pool_id: UUID) -> Iterator[None]:
    """For the block, serve the pool as the only process of this machine, whatever its root and however it writes the
    server's address: two would have one `worker_name`, and the second would take the first's runs for left behind.

    Raises ConfigError that names the process which does already. A socket, not a file, holds the place: it needs no
    folder that both know, and is gone with its process, however that ends.
    """
    name = f"\0opid-serve-{pool_id}"
    with socket.socket(socket.AF_UNIX) as holder, socket.socket(socket.AF_UNIX) as visitor:
        try:
            holder.bind(name)
            holder.listen()
        except OSError:
            who = "another `opid serve`"
            visitor.setblocking(False)  # nobody takes these calls: a queue that is full is no reason to wait
            with suppress(OSError):
                visitor.connect(name)
                (process_id,) = _PEER.unpack(visitor.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
                who += f" (process {process_id})"
            raise ConfigError(
                f"work pool {pool!r}: {who} serves it on this machine: stop it, or choose another --pool"
            ) from None
        yield


def requeue(
    client: SyncPrefectClient, pool: str, attempts: int, console: Console, *, worker_gone: bool = False
) -> None:
    """Queue again, under their own ids, the runs of the pool that Prefect would leave where they are.

    With `worker_gone`, while no worker serves the pool and so no run in it has a process: all that it had begun; one in
    the middle of a cancel is Cancelled. (The lost heartbeat would do it for Running ones 75 s later, for Pending and
    Cancelling ones never; tests/integration/test_serve.py kills the worker.) Always: runs that have been Crashed for
    `MISSED_AFTER_S` with attempts left, which the automation has missed: the server drops events that SQLite refuses
    under load, and it counts no start of a run that died before it ran, so those are tried for `NEVER_RAN_LIMIT_S` from
    their first try on (benchmarks/chaos kills in both moments).
    """
    from prefect.client.schemas.filters import FlowRunFilter, WorkPoolFilter

    states = ["CRASHED", *(["PENDING", "RUNNING", "CANCELLING"] if worker_gone else [])]
    runs = client.read_flow_runs(
        flow_run_filter=FlowRunFilter.model_validate({"state": {"type": {"any_": states}}}),
        work_pool_filter=WorkPoolFilter.model_validate({"name": {"any_": [pool]}}),
    )
    for run in runs:
        state = _next_state(client, run, attempts, worker_gone)
        if state is not None:
            client.set_flow_run_state(run.id, state, force=True)
            console.print(f"Flow run {run.name} ({run.id}): was {run.state_name}, now {state.name}.", soft_wrap=True)


def _next_state(client: SyncPrefectClient, run: FlowRun, attempts: int, worker_gone: bool):
    from prefect.states import AwaitingRetry, Cancelled, Crashed

    assert run.state is not None
    now = datetime.now(UTC)
    is_crashed = run.state.is_crashed()
    if run.state.is_cancelling():
        return Cancelled(message="Cancelled; its worker was gone.")
    if run.run_count >= attempts:
        message = f"Its worker was gone, at attempt {run.run_count} of {attempts}."
        return None if is_crashed else Crashed(message=message)
    if is_crashed and not worker_gone and (now - run.state.timestamp).total_seconds() <= MISSED_AFTER_S:
        return None
    if is_crashed and not run.run_count:
        # Not since it was created: a schedule makes runs days ahead, and a queue keeps them.
        tried = [run.state.timestamp]
        if (now - tried[0]).total_seconds() < NEVER_RAN_LIMIT_S:  # else there is nothing to ask the server for
            tried += [state.timestamp for state in client.read_flow_run_states(run.id) if state.is_pending()]
        if (now - min(tried)).total_seconds() >= NEVER_RAN_LIMIT_S:
            return None
    return AwaitingRetry(message="The run is started again: it crashed, or its worker was gone.")
