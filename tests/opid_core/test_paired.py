from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from opid_core.paired import Paired, mcnemar


def test_counts_and_p_value():
    """Five discordant tasks, one of them won by the first: 2 * (1 + 5) / 32."""
    first = [True, True, False, False, False, False, False, False]
    second = [True, False, True, True, True, True, False, False]
    assert mcnemar(first, second) == Paired(both=1, only_first=1, only_second=4, neither=2, p_value=0.375)


def test_nothing_to_tell_apart_has_p_one():
    assert mcnemar([True, False], [True, False]).p_value == 1.0
    assert mcnemar([], []) == Paired(0, 0, 0, 0, 1.0)
    assert mcnemar([True, False], [False, True]).p_value == 1.0  # 2 * (1 + 2) / 4 is above 1


def test_many_tasks():
    """Two thousand wins against none: 2 / 2 ** 2000 is 2 ** -1999, which a float holds as zero."""
    assert mcnemar([True] * 10, [False] * 10).p_value == 2 / 2**10
    assert mcnemar([True] * 2000, [False] * 2000).p_value == 0.0


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=30))
def test_it_is_symmetric_and_counts_every_task(wins):
    first, second = [a for a, _ in wins], [b for _, b in wins]
    found, mirrored = mcnemar(first, second), mcnemar(second, first)
    assert found.both + found.only_first + found.only_second + found.neither == len(wins)
    assert (found.only_first, found.only_second) == (mirrored.only_second, mirrored.only_first)
    assert 0 < found.p_value == mirrored.p_value <= 1
