"""Two policies on the same tasks: what each won alone, and how likely such a difference is by chance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Paired:
    """Tasks that both policies played, by who won them, and the p-value of McNemar's exact test."""

    both: int
    only_first: int
    only_second: int
    neither: int
    p_value: float
    """Chance of a split of the discordant tasks at least as uneven, were both policies equally good (two-sided)."""


def mcnemar(first_won: Sequence[bool], second_won: Sequence[bool]) -> Paired:
    """Compare two policies task by task. Source: McNemar 1947, in its exact form: under the null hypothesis
    `only_first` of the discordant tasks is binomial with probability 1/2. No discordant task: p = 1."""
    wins = list(zip(first_won, second_won, strict=True))
    only_first, only_second = wins.count((True, False)), wins.count((False, True))
    discordant = only_first + only_second
    tail = sum(math.comb(discordant, k) for k in range(min(only_first, only_second) + 1))
    return Paired(
        both=wins.count((True, True)),
        only_first=only_first,
        only_second=only_second,
        neither=wins.count((False, False)),
        p_value=min(1.0, 2 * tail / 2**discordant),
    )
