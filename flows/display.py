"""Live progress in the terminal; lines with the time where the output is no terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Column
from rich.text import Text

from flows.reports.formatting import say
from opid_core.config import CampaignConfig
from tasks import progress

LINE_EVERY_S = 30.0
"""How often a stage that goes on has a line where the output is no terminal."""
KNOWN_AFTER = 0.25
"""Share of a stage that is done before its time left is told: the episodes that end first are the shortest."""


class Clock:
    """How long the stage that runs now and its campaign still take, from what was seen of them."""

    def __init__(self, iterations: int | None) -> None:
        self.iterations, self.done = iterations, 0
        self.stage_left_s: float | None = None
        """Seconds left of the stage as its newest event tells; None before `KNOWN_AFTER` of it."""
        self._since_s: float | None = None
        self._took_s: list[float] = []
        self._begun: set[str] = set()
        """Stages that were seen at work: one that is reused then was played ahead, and its time was seen."""
        self._forget()

    def heard(self, event: progress.Progress) -> None:
        """What `event` tells. The campaign that goes on after a commit begins its next iteration then, as a new attempt
        does; how long what was given up, or a try of a stage that failed, took says nothing about one, nor does an
        iteration of which a part was done before."""
        now_s = time.monotonic()
        if event.event == "progress":
            self._at(event, now_s)
        elif event.iteration is not None and event.event in ("resumed", "committed"):
            is_seen = event.event == "committed" and event.iteration > 0 and not self._is_partly_reused
            if is_seen and self._since_s is not None:
                self._took_s.append(now_s - self._since_s)
            self._since_s, self.done = now_s, event.iteration
            self._forget()
        elif event.event == "given up":
            self._since_s = now_s
            self._begun.clear()
            self._forget()
        elif event.event == "fault" and stage_name(event) == self._stage:
            if self._since_s is not None:
                self._since_s += now_s - self._stage_since_s
            self._stage, self._counts, self.stage_left_s = "", False, None

    def left(self, *, short: bool = False) -> str:
        """`about 0:06:40`: the time until the last commit if iterations take as long as those seen. Before any was,
        `at least about 0:06:40`: if all take as long as the stages of the first that were seen, and is the present one
        at its speed so far. "" where nothing is known, or less than a second is left by that. Where `short`, `0:06:40`
        and `> 0:06:40`, and from a day on whole hours, `> 30 h`.
        """
        if self.iterations is None:
            return ""
        now_s, to_come = time.monotonic(), self.iterations - self.done
        if self._took_s and self._since_s is not None:
            whole_s = sum(self._took_s) / len(self._took_s) * to_come
            return _told("" if short else "about ", whole_s - (now_s - self._since_s), short)
        stage_s = now_s - self._stage_since_s if self._counts else 0.0
        known_s = self._stage_s if self._counts else None
        if self._is_partly_reused or (not self._finished_s and known_s is None):
            return ""
        whole_s = (self._finished_s + max(stage_s, known_s or 0.0)) * to_come
        return _told("> " if short else "at least about ", whole_s - self._finished_s - stage_s, short)

    def _at(self, event: progress.Progress, now_s: float) -> None:
        name = stage_name(event)
        if name != self._stage:
            if self._counts:
                self._finished_s += now_s - self._stage_since_s
            self._stage, self._stage_since_s, self._stage_s = name, now_s, None
            # Not what comes once, as the start of an engine, nor what not each iteration has.
            self._counts = event.iteration == self.done + 1 and event.stage != "evaluate"
        if event.note != progress.REUSED:
            self._begun.add(name)
        elif event.iteration == self.done + 1 and name not in self._begun:
            self._is_partly_reused = True
        self.stage_left_s = None
        if event.done and event.done >= KNOWN_AFTER * event.total:
            elapsed_s = now_s - self._stage_since_s
            self._stage_s = elapsed_s / event.done * event.total
            self.stage_left_s = self._stage_s - elapsed_s

    def _forget(self) -> None:
        self._stage, self._stage_since_s, self._counts = "", time.monotonic(), False
        self._stage_s: float | None = None
        """Seconds that the stage takes in all as far as can be told."""
        self._is_partly_reused = False  # what was done before took longer than is seen
        self._finished_s = 0.0
        """Of those before it, of the iteration that comes next."""


@contextmanager
def live_progress(console: Console, config: CampaignConfig | None = None, first: str = "start") -> Iterator[None]:
    """Show the current stage while the block runs, and how far the campaign of `config` is (None: it is none).

    `first` is what goes on until a stage reports. On a terminal two bars; elsewhere a line as a stage begins, every
    `LINE_EVERY_S` seconds while it goes on, and whatever stays on a terminal too.
    """
    clock = Clock(config.iterations if config else None)
    shown = _bars if console.is_terminal else _lines
    with shown(console, config.campaign if config else "", clock, first) as show:

        def heard(event: progress.Progress) -> None:
            clock.heard(event)
            show(event)

        stop = progress.listen(heard)
        try:
            yield
        finally:
            stop()


def stage_name(event: progress.Progress) -> str:
    """`2: rollout`, or the stage alone where it is of no iteration."""
    return event.stage if event.iteration is None else f"{event.iteration}: {event.stage}"


def counted(event: progress.Progress) -> str:
    """`12/64, 4 won`: how far a stage is, and its note."""
    return ", ".join(part for part in (f"{event.done}/{event.total}" if event.total else "", event.note) if part)


def clock_text(seconds: float) -> str:
    """`0:06:40`."""
    return str(timedelta(seconds=round(seconds)))


def _short_text(seconds: float) -> str:
    return clock_text(seconds) if round(seconds) < 86400 else f"{round(seconds / 3600)} h"


def _told(how: str, seconds: float, short: bool) -> str:
    return f"{how}{_short_text(seconds) if short else clock_text(seconds)}" if seconds >= 1 else ""


# On a terminal ------------------------------------------------------------------------------------------------------


class _Left(ProgressColumn):
    """The time left: of the campaign or of the stage, by the clock, and short: what it takes, the text beside lacks."""

    max_refresh = 0.5

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    def render(self, task: Task) -> Text:
        left = self._clock.left(short=True) if task.fields["of_campaign"] else task.fields["left"]
        return Text(f"{left} left" if left else "", "cyan")


@contextmanager
def _bars(console: Console, campaign: str, clock: Clock, first: str) -> Iterator[progress.Listener]:
    columns = (
        TextColumn(
            "{task.fields[label]}",
            style="bold",
            markup=False,
            table_column=Column(no_wrap=True, min_width=18, max_width=18),
        ),
        BarColumn(bar_width=12),
        TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)),
        _Left(clock),
    )
    with Progress(*columns, console=console, transient=True, expand=True) as bars:
        whole = None
        if clock.iterations is not None:
            whole = bars.add_task("", total=clock.iterations, label=campaign, of_campaign=True)
        stage = bars.add_task("", total=None, label=first, of_campaign=False, left="")
        current: str | None = None

        def at(label: str, event: progress.Progress | None = None) -> None:
            nonlocal stage, current
            is_new = label != current
            if is_new:  # another task: the old one keeps its total
                current = label
                bars.remove_task(stage)
                stage = bars.add_task("", total=None, label=label, of_campaign=False, left="")
            if event:
                left, how_far = _stage_left(clock, _short_text), counted(event)
                bars.update(stage, completed=event.done, total=event.total or None, description=how_far, left=left)
            if is_new:
                bars.refresh()

        def show(event: progress.Progress) -> None:
            if whole is not None:
                done = f"{clock.done} of {clock.iterations} iterations"
                bars.update(whole, completed=clock.done, description=done)
            if event.event != "progress":
                console.print(event.note, highlight=False)
                if event.event == "committed":
                    at(f"{event.iteration}: after commit")
                return
            at(stage_name(event), event)

        yield show


# Elsewhere ----------------------------------------------------------------------------------------------------------


@contextmanager
def _lines(console: Console, campaign: str, clock: Clock, first: str) -> Iterator[progress.Listener]:
    current: str | None = None
    printed_s = time.monotonic()

    def line(text: str) -> None:
        say(console, f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S}Z {campaign}{' ' if campaign else ''}{text}")

    def show(event: progress.Progress) -> None:
        nonlocal current, printed_s
        whole = f"; {left} left" if (left := clock.left()) else ""
        if event.event != "progress":
            line(event.note + (whole if event.event == "committed" else ""))
            return
        name, now_s = stage_name(event), time.monotonic()
        if name == current and now_s - printed_s < LINE_EVERY_S:
            return
        current, printed_s = name, now_s
        left = f", {left} left" if (left := _stage_left(clock, clock_text)) else ""
        line(f"{name} {counted(event)}".rstrip() + left + (f"{whole} in all" if whole else ""))

    line(first)
    yield show


def _stage_left(clock: Clock, text: Callable[[float], str]) -> str:
    return "" if clock.stage_left_s is None else text(clock.stage_left_s)
