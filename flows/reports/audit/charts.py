"""Inline SVG for the pages of campaigns: points on the page, worked out here, drawn by a template."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

COLOURS = ("#0b5394", "#b45309", "#6d28d9", "#047857", "#be123c", "#0e7490", "#4d7c0f", "#831843")
MOST_DOTS = 200
"""Of a line: those of a thousand iterations would be one thick line, and take half of the page's time."""


SMALL_MARGINS = (40, 20, 8)
LARGE_MARGINS = (70, 30, 18)
"""Left, bottom and top, of a chart as wide as the page: a phone's, which is smaller by half, has larger letters."""


@dataclass(frozen=True)
class Point:
    """A value and its interval (the value itself, where it has none)."""

    x: float
    value: float
    low: float
    high: float
    note: str


@dataclass(frozen=True)
class Series:
    """One line of a chart; `banded` draws the intervals as a band, else each is a bar."""

    name: str
    colour: str
    points: Sequence[Point]
    banded: bool = False
    dashed: bool = False
    shift: float = 0.0
    """Pixels to the right, so that bars at one place do not hide each other."""

    @property
    def dots(self) -> Sequence[Point]:
        """The points that have a dot: at most `MOST_DOTS`, at equal distances, with the last."""
        every = max(1, math.ceil(len(self.points) / MOST_DOTS))
        return self.points[::-1][::every][::-1]


class Chart:
    """A chart's frame: `x(...)` and `y(...)` give page coordinates (pixels of the view box)."""

    def __init__(self, series: Sequence[Series], width: int, height: int, top: float, margins: tuple[int, int, int]):
        self.series = series
        self.width, self.height, self.top = width, height, top
        self.left, self.bottom, self.above = margins
        self._last = max([1.0, *(point.x for one in series for point in one.points)])

    def x(self, value: float) -> float:
        return round(self.left + 6 + value / self._last * (self.width - self.left - 18), 1)

    def y(self, value: float) -> float:
        return round(self.above + (1 - value / self.top) * (self.height - self.bottom - self.above), 1)

    def x_ticks(self) -> list[int]:
        """Whole numbers: at most eleven, and no more than have room beside each other."""
        room = (self.width - self.left) / (14 + 8 * len(str(math.floor(self._last))))
        most = max(1.0, min(10.0, room))
        step = next(s * 10**power for power in range(9) for s in (1, 2, 5) if self._last / (s * 10**power) <= most)
        return list(range(0, math.floor(self._last) + 1, step))

    def y_ticks(self, count: int) -> list[float]:
        return [self.top * number / count for number in range(count + 1)]

    def legend(self) -> list[Series]:
        """One line of each name, the last."""
        return list({one.name: one for one in self.series}.values())

    def line(self, one: Series) -> str:
        """The points of an SVG polyline."""
        return " ".join(f"{self.x(point.x)},{self.y(point.value)}" for point in one.points)

    def band(self, one: Series) -> str:
        """The points of an SVG polygon around the intervals."""
        upper = [f"{self.x(point.x)},{self.y(point.high)}" for point in one.points]
        lower = [f"{self.x(point.x)},{self.y(point.low)}" for point in reversed(one.points)]
        return " ".join(upper + lower)


def nice_top(values: Sequence[float]) -> float:
    """The top of an axis that holds `values`: 1, 2 or 5 times a power of ten; 1 where they are all 0."""
    largest = max(values, default=0.0)
    if largest <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(largest))
    return next(round(step * power, 12) for step in (1, 2, 5, 10) if largest <= step * power * (1 + 1e-9))
