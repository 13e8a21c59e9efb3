"""Rules about single rows are told without Great Expectations first: it is asked here whether they say what it says."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.gates.expectations import Expectation, equal, flag, in_range
from tasks.gates.frame import Frame, with_fault

RULES = (
    flag("number", 0),
    flag("said", ""),
    flag("done"),
    flag("done", False),
    flag("count", 0),
    in_range("count", low=0, high=1),
    equal("count", "number"),
    equal("said", "answer"),
    equal("done", "again"),
    in_range("number", low=0, high=1),
    in_range("number", high=0),
    in_range("number", low=0),
    equal("number", "other"),
)
NUMBERS = st.sampled_from([-math.inf, -1.0, -0.0, 0.0, 0.5, 1.0, 2.0, math.inf, math.nan])
COUNTS = st.integers(-1, 2)
TEXTS = st.sampled_from(["", "a", None])
BOOLEANS = st.sampled_from([False, True, None])
COLUMNS = {"number": NUMBERS, "other": NUMBERS, "count": COUNTS, "said": TEXTS, "answer": TEXTS}
COLUMNS |= {"done": BOOLEANS, "again": BOOLEANS}
ROWS = st.lists(st.fixed_dictionaries(COLUMNS), min_size=1, max_size=6)


@functools.cache
def batches() -> Any:
    import great_expectations

    context = great_expectations.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False, "metric_calculations": False}  # type: ignore[assignment]
    return context.data_sources.add_pandas("p").add_dataframe_asset("a").add_batch_definition_whole_dataframe("b")


def rows_broken(rows: pd.DataFrame, rule: Expectation) -> list[int]:
    """The rows that Great Expectations says break `rule`."""
    from great_expectations import expectations

    built = getattr(expectations, rule.kind)(**rule.arguments)
    result = batches().get_batch({"dataframe": rows}).validate(built, result_format="COMPLETE")
    return result.result["unexpected_index_list"] or []


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=10, deadline=None)
@given(ROWS)
def test_a_rule_is_broken_in_the_rows_that_great_expectations_names(rule, values):
    rows = pd.DataFrame(values)
    assert rule.broken_in is not None
    assert np.flatnonzero(rule.broken_in(rows)).tolist() == rows_broken(rows, rule)


def test_the_fault_of_a_row_is_the_first_rule_that_it_breaks():
    rows = pd.DataFrame({"number": [0.0, 2.0, 2.0, math.nan], "other": [0.0, 3.0, 2.0, 1.0], "done": [True] * 4})
    frame = Frame(rows.assign(done=[True, True, False, True]), ("number",), RULES)
    merged = with_fault(frame, [flag("done"), equal("number", "other"), in_range("number", high=1)])
    assert merged.rows["fault"].tolist() == ["", "number", "done", ""]
    assert [(e.kind, e.arguments) for e in merged.suite] == [
        ("ExpectColumnValuesToBeInSet", {"column": "fault", "value_set": [""]})
    ]
    assert rows_broken(merged.rows, *merged.suite) == [1, 2]


@pytest.mark.parametrize("rule", [equal("number", "other"), in_range("number", low=0)])
def test_rules_hold_in_a_table_without_rows(rule):
    assert not rule.broken_in(pd.DataFrame({"number": [], "other": []})).any()
