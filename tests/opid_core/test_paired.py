from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from opid_core.paired import Paired, sign_test


def test_counts_and_p_value():
    """Five discordant tasks, one of them won by the first: 2 * (1 + 5) / 32."""
    first = [True, True, False, False, False, False, False, False]
    second = [True, False, True, True, True, True, False, False]
    assert sign_test(first, second) == Paired(both=1, first_more=1, second_more=4, neither=2, p_value=0.375)


def test_nothing_to_tell_apart_has_p_one():
    assert sign_test([True, False], [True, False]).p_value == 1.0
    assert sign_test([], []) == Paired(0, 0, 0, 0, 1.0)
    assert sign_test([True, False], [False, True]).p_value == 1.0  # 2 * (1 + 2) / 4 is above 1


def test_shares_of_repetitions_count_a_task_once():
    """Of three tasks that differ the first won one more often: 2 * (1 + 3) / 8."""
    found = sign_test([0.75, 0.5, 0.0, 0.25, 0.0], [0.5, 0.75, 1.0, 0.25, 0.0])
    assert found == Paired(both=1, first_more=1, second_more=2, neither=1, p_value=1.0)


def test_many_tasks():
    """Two thousand wins against none: 2 / 2 ** 2000 is 2 ** -1999, which a float holds as zero."""
    assert sign_test([True] * 10, [False] * 10).p_value == 2 / 2**10
    assert sign_test([True] * 2000, [False] * 2000).p_value == 0.0


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=30))
def test_it_is_symmetric_and_counts_every_task(wins):
    first, second = [a for a, _ in wins], [b for _, b in wins]
    found, mirrored = sign_test(first, second), sign_test(second, first)
    assert found.both + found.first_more + found.second_more + found.neither == len(wins)
    assert (found.first_more, found.second_more) == (mirrored.second_more, mirrored.first_more)
    assert 0 < found.p_value == mirrored.p_value <= 1
