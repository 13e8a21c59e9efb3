"""Live progress in the terminal; lines with the time where the output is no terminal."""

from __future__ import annotations

import time
from collections.abc import Iterator
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


class CampaignClock:
    """How long a campaign still takes, from the iterations that were committed while it was watched."""

    def __init__(self, iterations: int) -> None:
        self.iterations, self.done = iterations, 0
        self._since_s: float | None = None
        self._took_s: list[float] = []

    def resumed(self, iteration: int) -> None:
        """The campaign goes on now after an iteration that was committed before."""
        self._since_s, self.done = time.monotonic(), iteration

    def committed(self, iteration: int) -> None:
        """An iteration was committed now (0: the start)."""
        now_s = time.monotonic()
        if iteration > 0 and self._since_s is not None:
            self._took_s.append(now_s - self._since_s)
        self._since_s, self.done = now_s, iteration

    def left_s(self) -> float | None:
        """Seconds until the last commit if the iterations to come take as long as those seen; None before any."""
        if not self._took_s or self._since_s is None:
            return None
        whole_s = sum(self._took_s) / len(self._took_s) * (self.iterations - self.done)
        return max(0.0, whole_s - (time.monotonic() - self._since_s))


@contextmanager
def live_progress(console: Console, config: CampaignConfig | None = None, first: str = "start") -> Iterator[None]:
    """Show the current stage while the block runs, and how far the campaign of `config` is (None: it is none).

    `first` is what goes on until a stage reports. On a terminal two bars; elsewhere a line as a stage begins, every
    `LINE_EVERY_S` seconds while it goes on, and whatever stays on a terminal too.
    """
    clock = CampaignClock(config.iterations) if config else None
    shown = _bars if console.is_terminal else _lines
    with shown(console, config.campaign if config else "", clock, first) as show:

        def heard(event: progress.Progress) -> None:
            if clock and event.iteration is not None and event.event in ("resumed", "committed"):
                (clock.resumed if event.event == "resumed" else clock.committed)(event.iteration)
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


def stage_left_s(event: progress.Progress, elapsed_s: float) -> float | None:
    """Seconds left of a stage that is as far as `event` tells, at its speed so far; None before `KNOWN_AFTER`."""
    if not event.done or event.done < KNOWN_AFTER * event.total:
        return None
    return elapsed_s / event.done * (event.total - event.done)


def clock_text(seconds: float) -> str:
    """`0:06:40`."""
    return str(timedelta(seconds=round(seconds)))


# On a terminal ------------------------------------------------------------------------------------------------------


class _Left(ProgressColumn):
    """The time left: of the campaign by its clock, of a stage as its newest event told."""

    max_refresh = 0.5

    def __init__(self, clock: CampaignClock | None) -> None:
        super().__init__()
        self._clock = clock

    def render(self, task: Task) -> Text:
        seconds = self._clock.left_s() if task.fields["of_campaign"] and self._clock else task.fields["left_s"]
        return Text("" if seconds is None or task.total is None else f"{clock_text(seconds)} left", "cyan")


@contextmanager
def _bars(console: Console, campaign: str, clock: CampaignClock | None, first: str) -> Iterator[progress.Listener]:
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
        whole = (
            bars.add_task("", total=clock.iterations, label=campaign, of_campaign=True, left_s=None) if clock else None
        )
        stage = bars.add_task("", total=None, label=first, of_campaign=False, left_s=None)
        current, began_s = None, time.monotonic()

        def at(label: str, event: progress.Progress | None = None) -> None:
            nonlocal stage, current, began_s
            is_new = label != current
            if is_new:  # another task: the old one keeps its total
                current, began_s = label, time.monotonic()
                bars.remove_task(stage)
                stage = bars.add_task("", total=None, label=label, of_campaign=False, left_s=None)
            if event:
                left_s = stage_left_s(event, time.monotonic() - began_s)
                how_far = counted(event)
                bars.update(stage, completed=event.done, total=event.total or None, description=how_far, left_s=left_s)
            if is_new:
                bars.refresh()

        def show(event: progress.Progress) -> None:
            if whole is not None and clock:
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
def _lines(console: Console, campaign: str, clock: CampaignClock | None, first: str) -> Iterator[progress.Listener]:
    current: str | None = None
    began_s = printed_s = time.monotonic()

    def line(text: str) -> None:
        say(console, f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S}Z {campaign}{' ' if campaign else ''}{text}")

    def show(event: progress.Progress) -> None:
        nonlocal current, began_s, printed_s
        if event.event != "progress":
            left_s = clock.left_s() if clock and event.event == "committed" else None
            line(event.note + (f"; about {clock_text(left_s)} left" if left_s else ""))
            return
        name, now_s = stage_name(event), time.monotonic()
        if name != current:
            current, began_s = name, now_s
        elif now_s - printed_s < LINE_EVERY_S:
            return
        printed_s = now_s
        left_s = stage_left_s(event, now_s - began_s) if event.total else None
        left = "" if left_s is None else f", {clock_text(left_s)} left"
        line(f"{name} {counted(event)}{left}".rstrip())

    line(first)
    yield show
