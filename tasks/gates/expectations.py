"""Expectations as data, and the few kinds that the suites are made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import pandas as pd


@dataclass(frozen=True)
class Expectation:
    """What must hold of a frame's rows."""

    kind: str
    """Class name in `great_expectations.expectations`."""
    arguments: dict[str, Any]
    severity: Literal["fail", "warn"] = "fail"
    """`fail` keeps the table from being committed, `warn` is only recorded."""
    budget: str = ""
    """Of an expectation of the failure budget: what is wrong where it is broken, in words."""
    broken_in: Callable[[pd.DataFrame], pd.Series] | None = field(default=None, compare=False)
    """Of a rule about single rows: which of them break it, as Great Expectations would say. A frame's rules of that
    kind are checked as one, and each by itself where that fails."""


def warn(expectation: Expectation) -> Expectation:
    """`expectation`, recorded only."""
    return replace(expectation, severity="warn")


def unique(*columns: str) -> Expectation:
    """No two rows have the same values in `columns`."""
    if len(columns) == 1:
        return Expectation("ExpectColumnValuesToBeUnique", {"column": columns[0]})
    return Expectation("ExpectCompoundColumnsToBeUnique", {"column_list": list(columns)})


def in_set(column: str, values: Iterable[Any], *, max_others: float = 0.0) -> Expectation:
    """All values but a share of `max_others` are among `values`."""
    mostly = {"mostly": round(1 - max_others, 9)} if max_others else {}
    return Expectation("ExpectColumnValuesToBeInSet", {"column": column, "value_set": list(values), **mostly})


def flag(column: str, value: bool | int | str = True) -> Expectation:
    """All values that are not null are `value`."""
    broken = lambda rows: rows[column].notna() & (rows[column] != value)  # noqa: E731
    return replace(in_set(column, [value]), broken_in=broken)


def only(column: str, value: int | None) -> list[Expectation]:
    """All values are `value`; nothing is expected where that is None."""
    return [] if value is None else [flag(column, value)]


def in_range(column: str, *, low: float | None = None, high: float | None = None) -> Expectation:
    """All values that are not null lie between `low` and `high`, both included; None: no bound."""
    arguments = {"column": column, "min_value": low, "max_value": high}
    least, most = -math.inf if low is None else low, math.inf if high is None else high
    broken = lambda rows: (rows[column] < least) | (rows[column] > most)  # noqa: E731
    return Expectation("ExpectColumnValuesToBeBetween", arguments, broken_in=broken)


def has_text(column: str) -> Expectation:
    """All values have more than white space."""
    return Expectation("ExpectColumnValuesToMatchRegex", {"column": column, "regex": r"\S"})


def equal(column: str, other: str) -> Expectation:
    """Both columns are equal in each row in which neither is null."""
    arguments = {"column_A": column, "column_B": other, "ignore_row_if": "either_value_is_missing"}
    broken = lambda rows: rows[column].notna() & rows[other].notna() & (rows[column] != rows[other])  # noqa: E731
    return Expectation("ExpectColumnPairValuesToBeEqual", arguments, broken_in=broken)


def at_least(column: str, other: str) -> Expectation:
    """`column` is at least `other` in each row."""
    arguments = {"column_A": column, "column_B": other, "or_equal": True}
    return Expectation("ExpectColumnPairValuesAToBeGreaterThanB", arguments)


def is_finite(column: str) -> Expectation:
    """No value of a float column is infinite or not a number."""
    return flag(f"not_finite_{column}", False)


def log_probs(column: str) -> list[Expectation]:
    """As many as response tokens, finite, and no probability above 1."""
    finite = flag(f"n_not_finite_{column}", 0)
    return [equal(f"n_{column}", "n_response_ids"), finite, in_range(f"max_{column}", high=0.0)]
