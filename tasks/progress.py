"""Where stages say how far they are and what happened: to the terminal that listens, and to Prefect.

In a Prefect run every event is a line of the run's log, progress at most every `LOG_EVERY_S` seconds; a stage that
takes longer than `ARTIFACT_AFTER_S` seconds has a progress artifact too.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from infra.interrupts import interruptible
from opid_core.errors import InfrastructureError

Event = Literal["progress", "resumed", "committed", "fault", "given up"]

REUSED = "reused"
"""The note of a stage that was finished before."""
LOG_EVERY_S = 30.0
ARTIFACT_AFTER_S = 10.0
ARTIFACT_EVERY_S = 5.0


@dataclass(frozen=True)
class Progress:
    """`done` of `total` units of a stage of an iteration (None: of none), and a short note for people. Every
    event but progress is a line that stays."""

    iteration: int | None
    stage: str
    done: int = 0
    total: int = 0
    note: str = ""
    event: Event = "progress"


Listener = Callable[[Progress], None]

_listeners: list[Listener] = []


def listen(listener: Listener) -> Callable[[], None]:
    """Call `listener` with every report from now on; returns the function that stops it."""
    _listeners.append(listener)
    return lambda: _listeners.remove(listener)


def report(
    iteration: int | None,
    stage: str,
    done: int = 0,
    total: int = 0,
    note: str = "",
    event: Event = "progress",
) -> None:
    """Tell every listener."""
    for listener in _listeners:
        listener(Progress(iteration, stage, done, total, note, event))


def announce(iteration: int | None, stage: str, event: Event, note: str) -> None:
    """`report` a line that stays, and write it to the log of the Prefect run that this is part of."""
    from prefect import get_run_logger

    level = logging.WARNING if event in ("fault", "given up") else logging.INFO
    get_run_logger().log(level, note)
    report(iteration, stage, note=note, event=event)


@contextmanager
def logged(name: str, iteration: int | None = None) -> Iterator[None]:
    """Begin, end and fault of a task in its Prefect log; a fault that may pass is told in the terminal too."""
    from prefect import get_run_logger

    logger, began_s = get_run_logger(), time.monotonic()
    whole = name if iteration is None else f"{name} of iteration {iteration}"
    logger.info("%s begins", whole)
    try:
        with interruptible():
            yield
    except (InfrastructureError, TimeoutError) as error:
        announce(iteration, name, "fault", f"{name} failed: {error}")
        raise
    except asyncio.CancelledError:  # Prefect's way to end a task in this thread
        seconds = time.monotonic() - began_s
        announce(iteration, name, "fault", f"{name} failed: ended by its time limit after {seconds:.0f} s")
        raise
    except BaseException as error:
        logger.error("%s failed: %s: %s", whole, type(error).__name__, error)
        raise
    logger.info("%s ended after %.1f s", whole, time.monotonic() - began_s)


def artifact_key(kind: str, campaign: str) -> str:
    """The key of a campaign's artifacts of one kind, as Prefect takes it: lower-case letters, digits and dashes."""
    return f"{kind}-" + re.sub(r"[^a-z0-9]+", "-", campaign.lower()).strip("-")


@dataclass
class StageProgress:
    """How far one stage is, as its Prefect task run shows it. Made inside of that run, usable from any thread."""

    iteration: int
    stage: str
    key: str
    """Of the artifact; a campaign has one, whose versions are its stages."""
    logger: Any
    """Prefect's logger of the task run."""
    _began_s: float = field(default_factory=time.monotonic)
    _logged_s: float = field(default_factory=time.monotonic)
    _artifact: Any = None
    _artifact_s: float = 0.0

    def __call__(self, done: int = 0, total: int = 0, note: str = "") -> None:
        """Say that `done` of `total` units are done."""
        report(self.iteration, self.stage, done, total, note)
        now = time.monotonic()
        if now - self._logged_s >= LOG_EVERY_S:
            self._logged_s = now
            self.logger.info("%s: %s%s", self.stage, f"{done} of {total} " if total else "", note)
        if total and now - self._began_s >= ARTIFACT_AFTER_S and now - self._artifact_s >= ARTIFACT_EVERY_S:
            self._artifact_s = now
            self._show(100 * done / total, note)

    def end(self) -> None:
        """Show the whole of it as done, where it was shown at all."""
        if self._artifact is not None:
            self._show(100.0, "")

    def _show(self, percent: float, note: str) -> None:
        import httpx
        from prefect.artifacts import create_progress_artifact, update_progress_artifact
        from prefect.exceptions import PrefectException

        text = f"iteration {self.iteration}, {self.stage} {note}"
        try:
            if self._artifact is None:
                self._artifact = create_progress_artifact(percent, self.key, text)
            else:
                update_progress_artifact(self._artifact, percent, text)
        except (httpx.HTTPError, PrefectException) as error:  # a picture of the work must not end the work
            self.logger.warning("the progress artifact was not written: %s", error)
