"""Samples: ragged columns, selection, and the way to the learner's processes."""

from __future__ import annotations

import pickle

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opid_core.errors import DataError
from opid_core.samples import Ragged, Samples, micro_batches, stacked

ROWS = st.lists(st.lists(st.integers(-(2**31), 2**31 - 1), max_size=5), max_size=6)


def small() -> Samples:
    return Samples(
        pa.table(
            {
                "trajectory_id": ["b", "a", "b"],
                "step": pa.array([1, 0, 0], pa.int32()),
                "prompt_ids": pa.array([[1], [2, 3], [4, 5, 6]], pa.list_(pa.int32())),
                "response_ids": pa.array([[7, 8], [], [9]], pa.list_(pa.int32())),
                "skill_log_probs": pa.array([None, [], [-1.5]], pa.list_(pa.float32())),
                "outcome": ["success", "failure", "success"],
            }
        )
    )


@settings(deadline=None)
@given(ROWS)
def test_ragged_rows_survive_arrow(rows):
    ragged = Ragged.from_rows(rows, np.int32)
    assert [row.tolist() for row in Ragged.from_arrow(ragged.to_arrow())] == rows
    assert ragged.to_arrow().to_pylist() == rows


@settings(deadline=None)
@given(ROWS, st.data())
def test_taking_rows_is_taking_from_the_list(rows, data):
    places = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=8)) if rows else []
    taken = Ragged.from_rows(rows, np.int32).take(np.array(places, np.int64))
    assert [row.tolist() for row in taken] == [rows[place] for place in places]


def test_ragged_is_a_view_and_null_rows_are_empty():
    column = pa.array([[1.0, 2.0], None, [3.0]], pa.list_(pa.float32()))
    ragged = Ragged.from_arrow(column)
    assert ragged.lengths.tolist() == [2, 0, 1]
    assert ragged.padded(3).tolist() == [[1, 2, 0], [0, 0, 0], [3, 0, 0]]
    assert ragged.to_arrow(np.array([False, True, False])).to_pylist() == [[1, 2], None, [3]]
    without_null = pa.array([[1], [2, 3]], pa.list_(pa.int32()))
    assert not Ragged.from_arrow(without_null).values.flags.owndata
    assert Ragged.from_arrow(column.slice(1)).lengths.tolist() == [0, 1]
    assert stacked([ragged, ragged]).values.tolist() == [1, 2, 3, 1, 2, 3]


def test_columns_selection_and_the_order_of_steps():
    samples = small()
    assert len(samples) == 3
    assert samples.won.tolist() == [True, False, True]
    assert samples.has("skill_log_probs").tolist() == [False, True, True]
    assert samples.has("reference_log_probs").tolist() == [False, False, False]
    assert samples.tokens("reference_log_probs").lengths.tolist() == [0, 0, 0]
    assert {name: rows.tolist() for name, rows in samples.by_trajectory().items()} == {"b": [2, 0], "a": [1]}
    assert samples.select(np.array([False, True, True])).trajectory_ids == ["a", "b"]
    assert samples.select(np.array([2, 0])).prompt_ids.values.tolist() == [4, 5, 6, 1]
    assert samples.per_token(np.array([10, 20, 30])).tolist() == [10, 10, 30]
    assert samples.with_columns(step=np.array([5, 6, 7])).numbers("step").tolist() == [5, 6, 7]


def test_pickled_their_columns_stay_where_they_are():
    samples, buffers = small(), []
    begin = samples.prompt_ids.values.ctypes.data
    data = pickle.dumps(samples, protocol=5, buffer_callback=buffers.append)
    again = pickle.loads(data, buffers=buffers)
    assert again.table.equals(samples.table)
    assert again.prompt_ids.values.ctypes.data == begin


def test_tables_of_other_rows_are_refused():
    steps = small().table.drop_columns(["outcome"])
    with pytest.raises(DataError, match="trajectory_id"):
        Samples.from_tables(steps, pa.table({"trajectory_id": ["a"], "outcome": ["success"]}))
    with pytest.raises(DataError, match="step differs"):
        small().beside(pa.table({"trajectory_id": ["b", "a", "b"], "step": pa.array([0, 0, 1], pa.int32())}))


@settings(deadline=None)
@given(st.lists(st.integers(1, 50), max_size=20), st.integers(1, 100))
def test_micro_batches_hold_every_row_once_within_the_budget(lengths, budget):
    batches = micro_batches(lengths, budget)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= budget
