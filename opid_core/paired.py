"""Two policies on the same tasks: what each won more often, and how likely such a difference is by chance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import pyarrow as pa

from opid_core.statistics import wins_by_task


@dataclass(frozen=True)
class Paired:
    """Tasks that both policies played, by who won them more often, and the p-value of the exact sign test."""

    both: int
    """Won by both, as often."""
    first_more: int
    second_more: int
    neither: int
    p_value: float
    """Chance of a split of the tasks that differ at least as uneven, were both policies equally good (two-sided)."""


def sign_test(first_won: Sequence[float], second_won: Sequence[float]) -> Paired:
    """Compare two policies task by task, each with the share of its episodes that were won. Under the null hypothesis
    `first_more` of the tasks that differ is binomial with probability 1/2; no such task: p = 1. With one episode a task
    this is McNemar's test (1947) in its exact form.
    """
    pairs = list(zip(first_won, second_won, strict=True))
    first_more, second_more = sum(a > b for a, b in pairs), sum(a < b for a, b in pairs)
    differing = first_more + second_more
    tail = sum(math.comb(differing, k) for k in range(min(first_more, second_more) + 1))
    return Paired(
        both=sum(a == b > 0 for a, b in pairs),
        first_more=first_more,
        second_more=second_more,
        neither=sum(a == b == 0 for a, b in pairs),
        p_value=min(1.0, 2 * tail / 2**differing),
    )


def same_tasks(first: pa.Table, second: pa.Table) -> Paired | None:
    """The sign test of two `evaluations` tables of one temperature, each task with the share of its episodes that were
    won; a task that only broke on either side is left out. None where the tasks are not the same."""
    one, other = wins_by_task(first), wins_by_task(second)
    if one.keys() != other.keys():
        return None
    kept = [task for task in one if one[task] and other[task]]
    return sign_test([fmean(one[task]) for task in kept], [fmean(other[task]) for task in kept])
