"""The drills of the lease. Time is counted, not waited for: a newcomer's waits are replaced by `Waits`."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import time

import pytest

from infra.lease import acquire, held, status
from infra.store import CampaignStore, put_object, read_object
from opid_core.errors import LeaseHeld, LeaseLost
from tests.factories import stored_paths

SPAWN = multiprocessing.get_context("spawn")


class Waits:
    """Stands for the passing of time: counts the seconds waited, and does something at some of them."""

    def __init__(self, **events) -> None:
        self.waited_s = 0.0
        self.at = {int(name.removeprefix("at_")): event for name, event in events.items()}

    def __call__(self, seconds: float) -> None:
        self.waited_s += seconds
        event = self.at.pop(round(self.waited_s), None)
        if event is not None:
            event()


def test_a_second_driver_stops_and_names_the_first_which_renews_its_lease(store):
    assert status(store) is None
    with held(store, 3, "run-1") as lease:
        with pytest.raises(LeaseHeld) as caught:
            acquire(store, 3)
        holder, age_s = status(store) or pytest.fail("no lease")
        assert (holder.host, holder.process_id, holder.prefect_run_id) == (socket.gethostname(), os.getpid(), "run-1")
        assert holder.beats >= 1
        assert not holder.released
        assert age_s < 60
        lease.check()
    assert str(caught.value) == (
        f"campaign 'demo' in {store.root}: process {os.getpid()} on {socket.gethostname()} (since {holder.started_at}, "
        "Prefect run run-1) works on it; wait until it ends or stop it, then run the same command again"
    )
    assert stored_paths(store, "_lease") == ["_lease/000001.json"]


def _race(store, barrier, results) -> None:
    def wait(_: float) -> None:
        raise LeaseHeld("late: the winner's lease is there already")

    barrier.wait()
    try:
        results.put(acquire(store, 30, wait=wait).epoch)
    except LeaseHeld:
        results.put(None)


def test_of_drivers_that_start_together_exactly_one_has_the_lease(store):
    with held(store, 30):
        pass
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(8), context.Queue()
    processes = [context.Process(target=_race, args=(store, barrier, results)) for _ in range(8)]
    for process in processes:
        process.start()
    found = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert sorted(found, key=str) == [2] + [None] * 7


def _drive(store, taken, going_on, results) -> None:
    with held(store, 0.3) as lease:
        taken.set()
        going_on.wait()
        time.sleep(1)  # the heartbeat goes on too, and disturbs nobody
        try:
            lease.check()
            results.put("committed more")
        except LeaseLost as error:
            results.put(str(error))


@pytest.fixture
def driver(store):
    """A driver in a process of its own: the process, the event that lets it go on to its commit, and its results."""
    taken, going_on, results = SPAWN.Event(), SPAWN.Event(), SPAWN.Queue()
    process = SPAWN.Process(target=_drive, args=(store, taken, going_on, results))
    process.start()
    assert taken.wait(60)
    yield process, going_on, results
    process.kill()
    process.join()


def test_a_killed_driver_is_taken_over_after_the_time_to_live(store, driver):
    process, _, _ = driver
    process.kill()
    process.join()
    told, waits = [], Waits()
    assert acquire(store, 30, say=told.append, wait=waits).epoch == 2
    assert waits.waited_s == 30
    assert told[0].startswith(f"Waiting 30 s for a heartbeat of process {process.pid} on {socket.gethostname()} (since")


def test_a_driver_that_was_stopped_for_longer_finds_out_before_it_commits_more(store, driver):
    process, going_on, results = driver
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(0.5)  # a request on its way ends
    successor = acquire(store, 30, "run-2", wait=Waits())
    os.kill(process.pid, signal.SIGCONT)
    going_on.set()
    assert f"'demo': process {os.getpid()} on {socket.gethostname()} (since " in (text := results.get(timeout=60))
    assert "Prefect run run-2) has taken it over while this process was silent" in text
    successor.check()
    holder, _ = status(store) or pytest.fail("no lease")
    assert (holder.prefect_run_id, holder.released) == ("run-2", False)


@pytest.mark.parametrize(("its_s", "mine_s", "waited_s"), [(60, 5, 60), (5, 60, 60), (None, 5, 30)])
def test_a_holder_is_watched_for_the_longer_of_both_times_to_live(store, its_s, mine_s, waited_s):
    acquire(store, its_s or 5)
    if its_s is None:  # an earlier version's, which did not tell
        told = json.loads(read_object(store, "_lease/000001.json") or b"")
        put_object(store, "_lease/000001.json", json.dumps({k: v for k, v in told.items() if k != "ttl_s"}).encode())
    acquire(store, mine_s, wait=(waits := Waits()))
    assert waits.waited_s == waited_s


@pytest.mark.parametrize("at", [3, 30])
def test_a_heartbeat_at_any_look_keeps_the_lease(store, at):
    first = acquire(store, 30)
    waits = Waits(**{f"at_{at}": lambda: first.beat(1)})
    with pytest.raises(LeaseHeld):
        acquire(store, 30, wait=waits)
    assert waits.waited_s == at


def test_a_released_lease_is_taken_at_once_also_after_a_failure_or_while_it_is_watched(store):
    with pytest.raises(ZeroDivisionError), held(store, 30):
        _ = 1 / 0
    second = acquire(store, 30, wait=(waits := Waits()))
    assert (second.epoch, waits.waited_s) == (2, 0)
    waits = Waits(at_6=lambda: second.beat(1, released=True))
    assert acquire(store, 30, wait=waits).epoch == 3
    assert waits.waited_s == 6


@pytest.mark.parametrize(
    ("error", "ended"),
    [
        (KeyboardInterrupt(), "interrupted"),
        (ZeroDivisionError("by zero\nsecond line"), "ZeroDivisionError: by zero"),
        (MemoryError(), "MemoryError"),
        (ValueError("\nhalf a character \ud83d"), "ValueError: half a character \ufffd"),
        (ValueError("x" * 400), f"ValueError: {'x' * 288}"),
    ],
)
def test_a_holder_tells_how_it_ended(store, error, ended):
    with pytest.raises(type(error)), held(store, 30):
        raise error
    holder, _ = status(store) or pytest.fail("no lease")
    assert (holder.released, holder.ended, holder.process_id) == (True, ended, os.getpid())


def test_an_error_while_ctrl_c_is_handled_is_an_interrupt(store):
    def clean_up() -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            raise RuntimeError("cleaning up") from None

    with pytest.raises(RuntimeError), held(store, 30):
        clean_up()
    holder, _ = status(store) or pytest.fail("no lease")
    assert holder.ended == "interrupted"


def test_a_holder_that_ended_by_itself_or_in_an_earlier_version_tells_nothing(store):
    with held(store, 30):
        pass
    told = json.loads(read_object(store, "_lease/000001.json") or b"")
    assert told.pop("ended") is None
    put_object(store, "_lease/000001.json", json.dumps(told).encode())
    holder, _ = status(store) or pytest.fail("no lease")
    assert (holder.released, holder.ended, holder.process_id) == (True, None, os.getpid())


def test_another_newcomer_that_was_faster_has_it(store):
    acquire(store, 30)
    waits = Waits(at_30=lambda: acquire(store, 30, "faster", wait=lambda _: None))
    with pytest.raises(LeaseHeld, match="Prefect run faster"):
        acquire(store, 30, wait=waits)


DAMAGED = [b"", b"{}", b"[" * 1000, b"\xff", b'{"host": "a", "process_id": "1"}']


@pytest.mark.parametrize("ttl_s", [b"-1", b"1e300", b"NaN", b"null"])
def test_a_holder_that_tells_no_time_is_damaged(store, ttl_s):
    acquire(store, 5)
    data = read_object(store, "_lease/000001.json") or b""
    put_object(store, "_lease/000001.json", data.replace(b'"ttl_s": 5', b'"ttl_s": ' + ttl_s))
    assert acquire(store, 5, wait=(waits := Waits())).epoch == 2
    assert waits.waited_s == 30


@pytest.mark.parametrize("data", DAMAGED)
def test_a_damaged_lease_is_a_silent_holder_s_and_is_taken_over(store, data):
    put_object(store, "_lease/000001.json", data)
    (holder, _), told = status(store) or pytest.fail("no lease"), []
    assert (holder.name, holder.released) == ("an unknown process", False)
    assert acquire(store, 30, say=told.append, wait=(waits := Waits())).epoch == 2
    assert waits.waited_s == 30
    assert told == ["Waiting 30 s for a heartbeat of an unknown process (its lease is damaged)."]


@pytest.mark.parametrize("beat", [b"[", None])
def test_a_damaged_lease_that_is_written_again_has_a_live_holder(store, beat):
    first = acquire(store, 30)
    put_object(store, "_lease/000001.json", b"")
    waits = Waits(at_6=lambda: first.beat(1) if beat is None else put_object(store, "_lease/000001.json", beat))
    with pytest.raises(LeaseHeld):
        acquire(store, 30, wait=waits)
    assert waits.waited_s == 6


def test_a_successor_whose_lease_is_damaged_has_taken_over(store):
    first = acquire(store, 30)
    put_object(store, "_lease/000002.json", b"")
    with pytest.raises(LeaseLost):
        first.check()


def test_a_storage_fault_is_no_lost_lease(s3_store):
    lease = acquire(s3_store, 30)
    away = CampaignStore(s3_store.root, "demo", "http://127.0.0.1:1")
    type(lease)(away, lease.epoch, lease.holder).check()
