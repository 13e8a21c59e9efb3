"""The lease of a campaign: exactly one driver works on it. It saves compute; correctness does not need it, because
manifests are create-only.

    <root>/<campaign>/_lease/000017.json             epoch 17: its holder; create-only, so of two racers one has it
    <root>/<campaign>/_lease/000017.heartbeat        a counter that the holder alone overwrites
    <root>/<campaign>/_lease/000017.released.json    the holder has ended; create-only

No clocks of two machines are compared: a newcomer watches the counter by its own clock.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from infra.machine import this_machine
from infra.store import CampaignStore, create_object, list_objects, location, put_object, read_object
from opid_core.errors import ConfigError, DataError, InfrastructureError, LeaseHeld, LeaseLost, OpidError

_FOLDER = "_lease"
_LOOKS = 10
"""How often a newcomer looks at the heartbeat in one time to live."""


@dataclass(frozen=True)
class Holder:
    """The process that has, or had, a lease."""

    host: str
    machine: str
    """See `infra.machine`."""
    process_id: int
    process_started: int
    """By the machine's own count: tells apart two processes that had the same id."""
    started_at: str
    """ISO 8601, UTC."""
    prefect_run_id: str | None
    nonce: str
    """Makes each holder's object its own."""


@dataclass(frozen=True)
class LeaseStatus:
    """What is known of the newest lease without being its holder."""

    epoch: int
    holder: Holder
    released: bool
    heartbeat_age_s: float | None
    """Seconds since the heartbeat was written, as far as the clocks agree; None before the first."""


@dataclass(frozen=True)
class Lease:
    """A lease that this process holds."""

    store: CampaignStore
    epoch: int

    def check(self) -> None:
        """Raise LeaseLost when another driver has taken over. Call it before each attempt at an iteration.

        A storage fault is no sign of that and raises nothing: whoever goes on meets it at the next object.
        """
        taken = None
        with suppress(InfrastructureError, ConfigError):
            taken = _read_holder(self.store, self.epoch + 1)
        if taken is not None:
            raise LeaseLost(
                f"campaign {self.store.campaign!r}: {_describe(taken)} has taken it over while this process was "
                "silent; this one stops"
            )


def acquire(
    store: CampaignStore, ttl_s: float, prefect_run_id: str | None = None, wait: Callable[[float], None] = time.sleep
) -> Lease:
    """Take the lease: at once when it is free or its holder is gone from this machine, else after `ttl_s` seconds
    without a heartbeat. Raises LeaseHeld when there is one, or when another newcomer was faster."""
    epoch = _newest_epoch(store)
    if epoch and not _is_free(store, epoch):
        _watch(store, epoch, ttl_s, wait)
    lease = Lease(store, epoch + 1)
    if not create_object(store, _path(lease.epoch, "json"), _json(asdict(_this_process(prefect_run_id)))):
        raise _held_by(store, lease.epoch)
    _beat(lease, 0)
    return lease


@contextmanager
def held(store: CampaignStore, ttl_s: float, prefect_run_id: str | None = None) -> Iterator[Lease]:
    """Hold the lease while the block runs, renewed in the background every `ttl_s` / 3 seconds. Raises as `acquire`."""
    lease = acquire(store, ttl_s, prefect_run_id)
    ended = threading.Event()
    renewing = threading.Thread(target=_renew, args=(lease, ttl_s, ended), name="lease", daemon=True)
    renewing.start()
    try:
        yield lease
    finally:
        ended.set()
        with suppress(OpidError):  # unreleased, the next driver takes it once it sees this process gone or silent
            release(lease)


def release(lease: Lease) -> None:
    """Let the next driver take over at once."""
    create_object(lease.store, _path(lease.epoch, "released.json"), _json({"at": _now()}))


def status(store: CampaignStore) -> LeaseStatus | None:
    """The newest lease, None when there never was one. Changes nothing."""
    modified = {info.path: info.modified for info in list_objects(store, _FOLDER)}
    epoch = max(map(_epoch_of, modified), default=0)
    holder = _read_holder(store, epoch) if epoch else None
    if holder is None:
        return None
    heartbeat = modified.get(_path(epoch, "heartbeat"))
    age_s = None if heartbeat is None else max(0.0, time.time() - heartbeat)
    return LeaseStatus(epoch, holder, _path(epoch, "released.json") in modified, age_s)


def _watch(store: CampaignStore, epoch: int, ttl_s: float, wait: Callable[[float], None]) -> None:
    """Return when the heartbeat has not changed for `ttl_s` seconds, or the lease is free; raise LeaseHeld when it
    changes. Only the waits are counted, not how long the store took to answer: a slow store is no dead holder."""
    first = read_object(store, _path(epoch, "heartbeat"))
    for _ in range(_LOOKS):
        wait(ttl_s / _LOOKS)
        if _is_free(store, epoch):
            return
        if read_object(store, _path(epoch, "heartbeat")) != first:
            raise _held_by(store, epoch)


def _renew(lease: Lease, ttl_s: float, ended: threading.Event) -> None:
    count, pause_s = 0, ttl_s / 3
    while not ended.wait(pause_s):
        try:
            _beat(lease, count + 1)
            count, pause_s = count + 1, ttl_s / 3
        except OpidError:  # the store is away: again soon, until it is back; the driver itself meets the same fault
            pause_s = ttl_s / _LOOKS


def _beat(lease: Lease, count: int) -> None:
    put_object(lease.store, _path(lease.epoch, "heartbeat"), str(count).encode())


def _is_free(store: CampaignStore, epoch: int) -> bool:
    """Whether the holder has released the lease, or was a process of this machine that is no more."""
    if read_object(store, _path(epoch, "released.json")) is not None:
        return True
    holder = _read_holder(store, epoch)
    if holder is None or (holder.host, holder.machine) != (socket.gethostname(), this_machine()):
        return False
    return _start_of(holder.process_id) != holder.process_started


def _held_by(store: CampaignStore, epoch: int) -> LeaseHeld:
    holder = _read_holder(store, epoch)
    who = "another process" if holder is None else _describe(holder)
    return LeaseHeld(
        f"campaign {store.campaign!r} in {store.root}: {who} works on it; wait until it ends or stop it, "
        "then run the same command again"
    )


def _describe(holder: Holder) -> str:
    run = f", Prefect run {holder.prefect_run_id}" if holder.prefect_run_id else ""
    return f"process {holder.process_id} on {holder.host} (since {holder.started_at}{run})"


def _newest_epoch(store: CampaignStore) -> int:
    return max((_epoch_of(info.path) for info in list_objects(store, _FOLDER)), default=0)


def _epoch_of(path: str) -> int:
    return int(path.removeprefix(f"{_FOLDER}/").split(".")[0])


def _path(epoch: int, suffix: str) -> str:
    return f"{_FOLDER}/{epoch:06d}.{suffix}"


def _read_holder(store: CampaignStore, epoch: int) -> Holder | None:
    path = _path(epoch, "json")
    data = read_object(store, path)
    try:
        return None if data is None else Holder(**json.loads(data))
    except (ValueError, TypeError) as error:
        raise DataError(f"{location(store, path)}: not a lease: {error}") from None


def _this_process(prefect_run_id: str | None) -> Holder:
    started = _start_of(os.getpid())
    assert started is not None
    return Holder(
        host=socket.gethostname(),
        machine=this_machine(),
        process_id=os.getpid(),
        process_started=started,
        started_at=_now(),
        prefect_run_id=prefect_run_id,
        nonce=secrets.token_hex(8),
    )


def _start_of(process_id: int) -> int | None:
    """When a process started, in clock ticks since the machine did; None for one that has ended, reaped or not.

    Not psutil's `create_time`: that one moves when the machine's clock is set.
    """
    try:
        fields = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    state, started = fields[0], int(fields[19])
    return None if state in "ZX" else started


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()
