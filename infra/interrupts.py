"""Ctrl-C that waits for a place where it can be taken.

Prefect's own code between two tasks is no such place: an interrupt that comes when a task's or flow's function has just
ended is dropped (`FlowRunEngine.initialize_run`), and one there has left a run that waited for ever.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from opid_core.errors import is_interrupt

GRACE_S = 5.0
"""An interrupt that finds no place for so long is raised wherever the main thread is: it may wait there for minutes."""


class _Handler:
    """Handler of SIGINT. In it nothing may take a lock: the code that it interrupts may hold that."""

    def __init__(self) -> None:
        self.blocks = 0
        """Of `interruptible`, one in the other."""
        self.since_s: float | None = None
        """When an interrupt came that has ended nothing yet."""

    def __call__(self, number: int, frame: FrameType | None) -> None:
        is_second = self.since_s is not None
        self.since_s = self.since_s or time.monotonic()
        if self.blocks:
            raise KeyboardInterrupt
        if is_second:
            self.raise_pending()

    def raise_pending(self) -> None:
        if self.since_s is not None:
            self.since_s = None
            raise KeyboardInterrupt


@contextmanager
def defer_interrupts() -> Iterator[None]:
    """Around a flow: Ctrl-C is raised in a block of `interruptible`, at once where one runs, else as the next one
    begins, at the end of this block, after `GRACE_S`, or when it comes again.

    In another thread than the main one, and where SIGINT is handled otherwise or ignored, this does nothing.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    handler, ended = _Handler(), threading.Event()
    insisting = threading.Thread(target=_insist, args=(handler, ended), name="interrupts", daemon=True)
    insisting.start()
    signal.signal(signal.SIGINT, handler)
    try:
        yield
        handler.raise_pending()
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        ended.set()


@contextmanager
def interruptible() -> Iterator[None]:
    """Around work of our own: Ctrl-C that came before is raised now, and from now on at once."""
    handler = signal.getsignal(signal.SIGINT)
    if not isinstance(handler, _Handler) or threading.current_thread() is not threading.main_thread():
        yield
        return
    handler.blocks += 1
    try:
        handler.raise_pending()
        yield
        handler.raise_pending()  # one that Python dropped, as in the callback of a weak reference
    except BaseException as error:
        if is_interrupt(error):
            handler.since_s = None
        raise
    finally:
        handler.blocks -= 1


def _insist(handler: _Handler, ended: threading.Event) -> None:
    while not ended.wait(GRACE_S / 10):
        if not handler.blocks and handler.since_s is not None and time.monotonic() - handler.since_s > GRACE_S:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
