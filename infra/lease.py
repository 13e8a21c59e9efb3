"""The lease of a campaign: one driver works on it. It saves compute; correctness never depends on it, because commits
are create-only.

    <root>/<campaign>/_lease/000017.json    the 17th holder and its heartbeat

The object is created once, so of two drivers that start together one has the lease (drill: eight at once), and is then
overwritten by its holder alone. A driver that finds one watches it for its time to live, or that which its holder tells
where it is longer, by its own clock (clocks of two machines are never compared): while the heartbeat moves it stops and
names the holder (drill: a second driver), else it takes over (drill: SIGKILL). One that tells no holder, as a loss of
power or a hand can leave it, is watched in the same way. A holder that was silent for so long and comes back finds its
successor's object before its next commit (drill: SIGSTOP). The drills are in `tests/infra/test_lease.py`.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from infra.campaigns import NUMBERED
from infra.interrupts import interruptible
from infra.store import CampaignStore, create_object, list_objects, put_object, read_object
from opid_core.errors import ConfigError, InfrastructureError, LeaseHeld, LeaseLost, OpidError, is_interrupt
from opid_core.reading import well_formed

_LOOKS = 10
"""How often a newcomer looks at the heartbeat in one time to live."""
INTERRUPTED = "interrupted"
"""How a holder ended that was interrupted, as with Ctrl-C."""
_LONGEST = 300
"""Characters of an error that are kept."""


@dataclass(frozen=True)
class Holder:
    """The process that has, or had, the lease, as its object tells."""

    host: str
    """Empty where the object is damaged."""
    process_id: int
    started_at: str
    """ISO 8601, UTC."""
    prefect_run_id: str | None
    nonce: str
    """Makes each holder's object its own."""
    beats: int = 0
    released: bool = False
    ttl_s: Annotated[float, Field(gt=0, le=1e7)] = 30.0
    """Seconds without a heartbeat after which it is taken for dead. The default is for what an earlier version wrote,
    which did not tell, and for damaged objects."""
    iterations: Annotated[int, Field(ge=0)] | None = None
    """How many it was to make the campaign have; None where it does not tell."""
    ended: str | None = None
    """How it ended: `INTERRUPTED`, or the type and the first line of the error; None where it has not, ended by itself,
    or does not tell."""

    @property
    def name(self) -> str:
        return f"process {self.process_id} on {self.host}" if self.host else "an unknown process"


_HOLDER = TypeAdapter(Holder)


@dataclass(frozen=True)
class Lease:
    """A lease that this process holds."""

    store: CampaignStore
    epoch: int
    holder: Holder

    def check(self) -> None:
        """Raise LeaseLost when another driver has taken over. Call it before each attempt at an iteration and before
        its commit.

        A storage fault is no sign of that and raises nothing: whoever goes on meets it at the next object.
        """
        successor = None
        with suppress(InfrastructureError, ConfigError):
            successor = _read(self.store, self.epoch + 1)
        if successor is not None:
            raise LeaseLost(
                f"campaign {self.store.campaign!r}: {_describe(successor)} has taken it over while this process was "
                "silent; this one stops"
            )

    def beat(self, count: int, *, released: bool = False, ended: str | None = None) -> None:
        """Renew the lease, or let the next driver take over at once and tell how this one `ended`."""
        holder = replace(self.holder, beats=count, released=released, ended=ended)
        put_object(self.store, _path(self.epoch), _to_bytes(holder))


def acquire(
    store: CampaignStore,
    ttl_s: float,
    prefect_run_id: str | None = None,
    say: Callable[[str], None] = lambda text: None,
    wait: Callable[[float], None] = time.sleep,
    *,
    iterations: int | None = None,
) -> Lease:
    """Take the lease: at once when it is free, else after `ttl_s` seconds without a heartbeat, or the holder's own time
    to live where that is longer (`say` is told so). Raises LeaseHeld when there is one, or when another newcomer was
    faster."""
    epoch = _newest_epoch(store)
    first = _read(store, epoch) if epoch else None
    if first is not None and not first.released:
        silent_s = max(ttl_s, first.ttl_s)
        say(f"Waiting {silent_s:g} s for a heartbeat of {_describe(first)}.")
        # Only the waits are counted, not how long the store took to answer: a slow store is no dead holder.
        for _ in range(_LOOKS):
            with interruptible():
                wait(silent_s / _LOOKS)
            holder = _read(store, epoch)
            if holder is None or holder.released:
                break
            if holder != first:
                raise _held(store, holder)
    mine = Holder(
        host=socket.gethostname(),
        process_id=os.getpid(),
        started_at=datetime.now(UTC).isoformat(timespec="seconds"),
        prefect_run_id=prefect_run_id,
        nonce=secrets.token_hex(8),
        ttl_s=ttl_s,
        iterations=iterations,
    )
    if not create_object(store, _path(epoch + 1), _to_bytes(mine)):
        raise _held(store, _read(store, epoch + 1))
    return Lease(store, epoch + 1, mine)


@contextmanager
def held(
    store: CampaignStore,
    ttl_s: float,
    prefect_run_id: str | None = None,
    say: Callable[[str], None] = lambda text: None,
    *,
    iterations: int | None = None,
) -> Iterator[Lease]:
    """Hold the lease while the block runs, renewed in the background every `ttl_s` / 3 seconds, and let it go with how
    the block ended. Raises as `acquire`."""
    lease = acquire(store, ttl_s, prefect_run_id, say, iterations=iterations)
    over, ended = threading.Event(), None
    renewing = threading.Thread(target=_renew, args=(lease, ttl_s, over), name="lease", daemon=True)
    renewing.start()
    try:
        yield lease
    except BaseException as error:
        ended = _ending(error)
        raise
    finally:
        over.set()
        renewing.join(ttl_s)  # a heartbeat on its way would undo the release
        with suppress(OpidError):  # unreleased, the next driver takes it once it has been silent
            lease.beat(0, released=True, ended=ended)


def status(store: CampaignStore) -> tuple[Holder, float] | None:
    """The newest holder, and the seconds since it wrote its object as far as the clocks agree; None when there never
    was one. Changes nothing."""
    listed = list_objects(store, "_lease", NUMBERED)
    holder = _read(store, _epoch_of(listed[-1].path)) if listed else None
    return None if holder is None else (holder, max(0.0, time.time() - listed[-1].modified))


def _ending(error: BaseException) -> str:
    if is_interrupt(error):
        return INTERRUPTED
    lines = str(error).strip().splitlines()
    return well_formed(": ".join([type(error).__name__, *lines[:1]])[:_LONGEST])


def _renew(lease: Lease, ttl_s: float, over: threading.Event) -> None:
    count, pause_s = 1, ttl_s / 3
    while not over.wait(pause_s):
        try:
            lease.beat(count)
            count, pause_s = count + 1, ttl_s / 3
        except OpidError:  # the store is away: again soon, until it is back; the driver itself meets the same fault
            pause_s = ttl_s / _LOOKS


def _held(store: CampaignStore, holder: Holder | None) -> LeaseHeld:
    who = "another process" if holder is None else _describe(holder)
    return LeaseHeld(
        f"campaign {store.campaign!r} in {store.root}: {who} works on it; wait until it ends or stop it, "
        "then run the same command again"
    )


def _describe(holder: Holder) -> str:
    run = f", Prefect run {holder.prefect_run_id}" if holder.prefect_run_id else ""
    return f"{holder.name} (since {holder.started_at}{run})" if holder.host else f"{holder.name} (its lease is damaged)"


def _newest_epoch(store: CampaignStore) -> int:
    return max((_epoch_of(info.path) for info in list_objects(store, "_lease", NUMBERED)), default=0)


def _epoch_of(path: str) -> int:
    return int(path.removeprefix("_lease/").removesuffix(".json"))


def _path(epoch: int) -> str:
    return f"_lease/{epoch:06d}.json"


def _read(store: CampaignStore, epoch: int) -> Holder | None:
    data = read_object(store, _path(epoch))
    if data is None:
        return None
    try:
        return _HOLDER.validate_json(data, strict=True)
    except ValidationError:  # somebody's all the same; the hash shows whether another heartbeat came
        return Holder("", 0, "", None, hashlib.sha256(data).hexdigest())


def _to_bytes(holder: Holder) -> bytes:
    return (json.dumps(asdict(holder), indent=2, sort_keys=True) + "\n").encode()
