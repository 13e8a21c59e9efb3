"""When Ctrl-C is raised. That an interrupted campaign ends and goes on as if nothing had been: test_recovery.py."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from infra import interrupts
from infra.interrupts import defer_interrupts, interruptible


@contextmanager
def with_handler(handler: signal.Handlers | None) -> Iterator[None]:
    before = signal.signal(signal.SIGINT, handler or signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def _as_python_begins() -> Iterator[None]:
    with with_handler(None):
        yield


def press() -> None:
    signal.raise_signal(signal.SIGINT)


def ended(flow: Callable[[list[str]], None]) -> list[str]:
    """What `flow` has noted before Ctrl-C ended it."""
    passed: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        flow(passed)
    return passed


def test_between_tasks_it_waits_for_the_next_one():
    @defer_interrupts()
    def flow(passed: list[str]) -> None:
        with interruptible():
            passed.append("a task")
        press()
        passed.append("Prefect's own code")
        with interruptible():
            passed.append("the next task")

    assert ended(flow) == ["a task", "Prefect's own code"]


def test_in_a_task_and_what_runs_within_it_it_is_raised_at_once_and_once():
    def task(passed: list[str]) -> None:
        with interruptible(), interruptible():
            press()
            passed.append("after it")

    with defer_interrupts():
        assert ended(task) == ended(task) == []
        with interruptible():
            pass


def test_work_in_an_event_loop_is_ended_and_cleans_up():
    async def waiting(passed: list[str]) -> None:
        asyncio.get_running_loop().call_later(0.05, press)
        try:
            await asyncio.sleep(60)  # where the interrupt is lost: the test fails, and does not hang
            passed.append("slept")
        finally:
            passed.append("cleaned up")

    @defer_interrupts()
    def flow(passed: list[str]) -> None:
        with interruptible():
            asyncio.run(waiting(passed))

    assert ended(flow) == ["cleaned up"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_one_that_python_drops_is_raised_at_the_end_of_the_task():
    class Pressing:
        def __del__(self) -> None:
            press()

    @defer_interrupts()
    def flow(passed: list[str]) -> None:
        with interruptible():
            Pressing()
            passed.append("dropped")
        passed.append("the task has ended")

    assert ended(flow) == ["dropped"]


def test_what_no_task_follows_is_raised_in_the_end():
    @defer_interrupts()
    def flow(passed: list[str]) -> None:
        press()
        passed.append("the end of the flow")

    assert ended(flow) == ["the end of the flow"]


def test_a_second_one_does_not_wait():
    @defer_interrupts()
    def flow(passed: list[str]) -> None:
        press()
        passed.append("once")
        press()
        passed.append("twice")

    assert ended(flow) == ["once"]


def test_where_nothing_takes_it_the_main_thread_is_woken(monkeypatch):
    monkeypatch.setattr(interrupts, "GRACE_S", 0.2)

    @defer_interrupts()
    def flow(passed: list[str]) -> None:
        press()
        threading.Event().wait(60)  # likewise
        passed.append("never")

    assert ended(flow) == []


def test_an_error_on_the_way_is_not_replaced():
    @defer_interrupts()
    def flow() -> None:
        press()
        raise ValueError("of the flow")

    with pytest.raises(ValueError, match="of the flow"):
        flow()


def test_who_ignores_it_or_handles_it_keeps_to_that():
    with with_handler(signal.SIG_IGN), defer_interrupts(), interruptible():
        press()
    with defer_interrupts():
        outer = signal.getsignal(signal.SIGINT)
        with defer_interrupts():  # of a study around its campaigns
            assert signal.getsignal(signal.SIGINT) is outer
        assert signal.getsignal(signal.SIGINT) is outer
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_another_thread_changes_nothing():
    seen = []

    def elsewhere() -> None:
        with defer_interrupts(), interruptible():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler]
