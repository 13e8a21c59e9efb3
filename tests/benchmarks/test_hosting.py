"""What calls over a hosting are measured to take: the arrays that they bring, and the table."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.hosting import Echo, measured, on_sockets, table
from infra.hosting import HostedGroup


class LosesOnTheWayThere(Echo):
    def take(self, array: np.ndarray) -> int:
        return len(array) - 1


class LosesOnTheWayBack(Echo):
    def give(self, size: int) -> np.ndarray:
        return np.zeros(size - 1, np.uint8)


def test_a_group_on_this_machine_is_measured_in_calls_and_both_directions():
    with on_sockets() as group:
        rates = measured(group, 3, 1)
    assert list(rates) == ["empty calls/s", "1 MiB there, MiB/s", "1 MiB back, MiB/s"]
    assert min(rates.values()) > 0


@pytest.mark.parametrize(
    ("echo", "lost"), [(LosesOnTheWayThere, "did not arrive"), (LosesOnTheWayBack, "did not come back")]
)
def test_an_array_that_is_not_whole_is_no_measurement(echo, lost):
    group = HostedGroup("echo", f"{__name__}:{echo.__name__}")
    try:
        with pytest.raises(AssertionError, match=lost):
            measured(group, 1, 1)
    finally:
        group.kill()


def test_the_table_has_medians_and_ranges_of_the_rounds():
    rounds = {
        "sockets": [{"calls/s": 3000.4}, {"calls/s": 1000.0}, {"calls/s": 2000.0}],
        "Ray": [{"calls/s": 10.0}, {"calls/s": 30.0}],
    }
    assert table(rounds).splitlines() == [
        "| hosting | calls/s |",
        "| --- | --- |",
        "| sockets | 2,000 (1,000 to 3,000) |",
        "| Ray | 20 (10 to 30) |",
    ]
