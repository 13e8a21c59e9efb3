"""The charts of the audit's pages: where points and numbers stand."""

from __future__ import annotations

import pytest

from flows.reports.audit.charts import Chart, Point, Series, nice_top


@pytest.mark.parametrize(
    ("points", "first", "dots"), [(0, None, 0), (1, 0, 1), (200, 0, 200), (201, 0, 101), (601, 0, 151)]
)
def test_a_long_line_has_few_dots_and_its_last_one(points, first, dots):
    line = Series("s", "#000000", [Point(number, 0, 0, 0, "") for number in range(points)])
    drawn = [int(point.x) for point in line.dots]
    assert len(drawn) == dots
    assert drawn[:1] == ([] if first is None else [first])
    assert drawn[-1:] == ([] if first is None else [points - 1])


def test_a_chart_puts_values_where_they_belong():
    chart = Chart([Series("s", "#000000", [Point(0, 0, 0, 0, ""), Point(20, 1, 1, 1, "")])], 200, 100, 1.0, (40, 20, 8))
    assert (chart.x(0), chart.x(20), chart.y(0), chart.y(1)) == (46, 188, 80, 8)
    assert chart.x_ticks() == [0, 5, 10, 15, 20]  # a number of two digits takes 30 of 160 pixels
    wide = Chart(chart.series, 400, 100, 1.0, (40, 20, 8))
    assert wide.x_ticks() == [0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20]
    assert chart.line(chart.series[0]) == "46.0,80.0 188.0,8.0"
    assert [nice_top(values) for values in ([], [0.0], [0.3], [7, 12], [100])] == [1.0, 1.0, 0.5, 20, 100]
