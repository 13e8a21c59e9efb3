"""The step samples of an iteration as columns: one object from the rollout to the update.

Texts stay in Arrow, numbers are numpy views on Arrow's buffers; nothing is a Python object a row or a token.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float32, Int

from opid_core.errors import DataError

LEARNED = (
    "prompt_ids",
    "response_ids",
    "old_log_probs",
    "skill_log_probs",
    "reference_log_probs",
    "outcome_advantage",
    "step_advantage",
    "skill_advantages",
)
"""Columns that the learner reads."""


@dataclass(frozen=True)
class Ragged:
    """Rows of unequal length over one flat array: row i is `values[offsets[i] : offsets[i + 1]]`."""

    values: np.ndarray
    offsets: Int[np.ndarray, " rows+1"]

    @classmethod
    def from_lengths(cls, values: np.ndarray, lengths: Int[np.ndarray, " rows"]) -> Ragged:
        """Rows of `lengths` that stand one after the other in `values`."""
        return cls(values, np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]))

    @classmethod
    def from_rows(cls, rows: Sequence[Any], dtype: type[np.generic]) -> Ragged:
        """A copy of `rows`, each a sequence of numbers."""
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        values = np.concatenate([np.asarray(row, dtype) for row in rows]) if len(rows) else np.zeros(0, dtype)
        return cls.from_lengths(values, lengths)

    @classmethod
    def from_arrow(cls, column: pa.ChunkedArray | pa.ListArray) -> Ragged:
        """A view on an Arrow list column; a null row is an empty one."""
        array = one_chunk(column) if isinstance(column, pa.ChunkedArray) else column
        if array.null_count:
            array = pc.fill_null(array, pa.scalar([], array.type))  # pyright: ignore[reportAttributeAccessIssue]
        offsets = as_numpy(array.offsets).astype(np.int64)
        values = as_numpy(array.flatten())
        return cls(values, offsets - offsets[0] if len(offsets) else np.zeros(1, np.int64))

    def to_arrow(self, missing: Bool[np.ndarray, " rows"] | None = None) -> pa.ListArray:
        """An Arrow list array on the same values; rows that are `missing`, which must be empty, are null."""
        mask = None if missing is None or not missing.any() else pa.array(missing)
        return pa.ListArray.from_arrays(pa.array(self.offsets, pa.int32()), pa.array(self.values), mask=mask)

    @cached_property
    def lengths(self) -> Int[np.ndarray, " rows"]:
        return np.diff(self.offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __iter__(self) -> Iterator[np.ndarray]:
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, row: int) -> np.ndarray:
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    def take(self, rows: Int[np.ndarray, " taken"]) -> Ragged:
        """The rows at `rows`, in that order."""
        if np.array_equal(rows, np.arange(len(self))):
            return self  # the common case, in which nothing need be copied
        values = self.to_arrow().take(pa.array(rows)).flatten()  # copies row by row; an index of each value is larger
        return Ragged.from_lengths(as_numpy(values), self.lengths[rows])

    def between(self, begin: int, end: int) -> Ragged:
        """A view of the rows from `begin` up to `end`."""
        first, last = self.offsets[begin], self.offsets[end]
        return Ragged(self.values[first:last], self.offsets[begin : end + 1] - first)

    def padded(self, width: int | None = None) -> np.ndarray:
        """[rows, width], each row followed by zeros; `width` None: of the longest row."""
        width = int(self.lengths.max(initial=0)) if width is None else width
        filled = np.zeros((len(self), width), self.values.dtype)
        filled[np.arange(width) < self.lengths[:, None]] = self.values
        return filled


def one_chunk(column: pa.ChunkedArray) -> pa.Array:
    """The column as one array; Arrow's own `combine_chunks` copies even where there is one chunk already."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def as_numpy(numbers: pa.Array) -> np.ndarray:
    """A view on an array of numbers; a copy with NaN for what is null. Arrow's `to_numpy` imports pandas, which takes a
    command half a second."""
    return numbers.to_numpy(zero_copy_only=False) if numbers.null_count else np.from_dlpack(numbers)


def stacked(parts: Iterable[Ragged]) -> Ragged:
    """The rows of all `parts`, one part after the other."""
    parts = list(parts)
    return Ragged.from_lengths(
        np.concatenate([part.values for part in parts]), np.concatenate([part.lengths for part in parts])
    )


def micro_batches(lengths: Sequence[int] | np.ndarray, micro_batch_tokens: int) -> list[list[int]]:
    """Indices of `lengths`, longest first, in batches whose padded size (rows x longest) fits the token budget.

    A row longer than the budget is a batch of its own.
    """
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    batches: list[list[int]] = []
    for index in order:
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= micro_batch_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def _column(values: Any) -> pa.Array | pa.ChunkedArray:
    if isinstance(values, Ragged):
        return values.to_arrow()
    return values if isinstance(values, pa.Array | pa.ChunkedArray) else pa.array(values)


class Samples:
    """Step samples: the columns of the table `steps`, `outcome` of each sample's trajectory and, as the stages go on,
    those of `routes` and `scores`. Columns are read by their names in `schema`; nothing is ever changed in place.
    """

    def __init__(self, table: pa.Table) -> None:
        self.table = table.combine_chunks()

    @classmethod
    def from_tables(cls, steps: pa.Table, trajectories: pa.Table, *others: pa.Table) -> Samples:
        """The samples of `steps`, in its order, with `outcome` from `trajectories` and the columns of `others` (tables
        with one row a sample: `routes`, `scores`) beside them.

        Raises DataError where a table's keys (trajectory_id, step) are not those of `steps` in the same order.
        """
        ids = steps["trajectory_id"]
        rows = pc.index_in(ids, trajectories["trajectory_id"])  # pyright: ignore[reportAttributeAccessIssue]
        if rows.null_count:
            raise DataError("steps: a trajectory_id has no row in the table trajectories")
        samples = cls(steps.append_column("outcome", trajectories["outcome"].take(rows)))
        for other in others:
            samples = samples.beside(other)
        return samples

    @classmethod
    def from_columns(cls, **columns: Any) -> Samples:
        """Samples of these columns: Arrow arrays, numpy arrays, lists or `Ragged`."""
        return cls(pa.table({name: _column(values) for name, values in columns.items()}))

    def beside(self, table: pa.Table) -> Samples:
        """These samples with the columns of `table`, one row a sample; of a name that both have, those of here stay.

        Raises DataError where its keys (trajectory_id, step) are not the samples' own.
        """
        for key in ("trajectory_id", "step"):
            if not table[key].equals(self.table[key]):
                raise DataError(f"samples: a table with one row a sample has other rows: {key} differs")
        new = {name: table[name] for name in table.column_names if name not in self.table.column_names}
        return self.with_columns(**new)

    def with_columns(self, **columns: Any) -> Samples:
        """These samples with further columns, or others in their place: an Arrow array, a numpy array or a list."""
        table = self.table
        for name, values in columns.items():
            column, index = _column(values), table.schema.get_field_index(name)
            table = table.append_column(name, column) if index < 0 else table.set_column(index, name, column)
        return Samples(table)

    def select(self, which: np.ndarray) -> Samples:
        """The samples where `which` [samples] is true, or those at the indices `which`, in that order."""
        if which.dtype == bool and which.all():
            return self  # the common case, in which nothing need be copied
        chosen = pa.array(which)
        return Samples(self.table.filter(chosen) if which.dtype == bool else self.table.take(chosen))

    def __len__(self) -> int:
        return self.table.num_rows

    def __reduce__(self) -> tuple[type[Samples], tuple[pa.Table]]:
        """Pickled, as on the way to the learner's processes, the samples are Arrow's buffers (protocol 5 leaves them
        where they are) without the views that were made of them."""
        return Samples, (self.table,)

    def learned(self) -> Samples:
        """The samples that are trained on, with the columns that the learner reads."""
        return Samples(self.table.select(list(LEARNED))).select(self.numbers("trained"))

    # Columns ------------------------------------------------------------------------------------------------------

    def numbers(self, name: str) -> np.ndarray:
        """A column of numbers or flags, [samples]."""
        return one_chunk(self.table[name]).to_numpy(zero_copy_only=False)

    def texts(self, name: str) -> list[Any]:
        """A column of texts (or of lists of texts, None where there is none) as Python's."""
        return self.table[name].to_pylist()

    def tokens(self, name: str) -> Ragged:
        """A column of lists of numbers; empty where the sample has none, or where there is no such column."""
        if name not in self.table.column_names:
            return Ragged(np.zeros(0, np.float32), np.zeros(len(self) + 1, np.int64))
        return Ragged.from_arrow(self.table[name])

    def has(self, name: str) -> Bool[np.ndarray, " samples"]:
        """Whether the sample has a value in the column `name`; all false where there is no such column."""
        if name not in self.table.column_names:
            return np.zeros(len(self), bool)
        return self.table[name].is_valid().to_numpy(zero_copy_only=False)

    @cached_property
    def prompt_ids(self) -> Ragged:
        return self.tokens("prompt_ids")

    @cached_property
    def response_ids(self) -> Ragged:
        return self.tokens("response_ids")

    @cached_property
    def trajectory_ids(self) -> list[str]:
        return self.texts("trajectory_id")

    @cached_property
    def group_ids(self) -> list[str]:
        return self.texts("group_id")

    @property
    def completed_iterations(self) -> int:
        """Before the one that the samples are of; 0 where there is no sample."""
        return int(self.numbers("iteration")[0]) - 1 if len(self) else 0

    @property
    def won(self) -> Bool[np.ndarray, " samples"]:
        """Whether the sample's trajectory succeeded."""
        return pc.equal(self.table["outcome"], "success").to_numpy(zero_copy_only=False)  # pyright: ignore[reportAttributeAccessIssue]

    def per_token(self, values: np.ndarray) -> np.ndarray:
        """`values` [samples] at each of the samples' response tokens, [tokens]."""
        return np.repeat(values, self.response_ids.lengths)

    def on_tokens(self, name: str) -> np.ndarray:
        """A column of one number a response token at each of the samples' response tokens, [tokens]; 0 where the sample
        has none."""
        has = self.has(name)
        filled = np.zeros(len(self.response_ids.values), np.float32)
        if has.any():
            filled[self.per_token(has)] = self.tokens(name).values
        return filled

    def by_trajectory(self) -> dict[str, Int[np.ndarray, " steps"]]:
        """Indices of each trajectory's samples in the order of their steps, trajectories by first appearance."""
        steps = self.numbers("step")
        indices: dict[str, list[int]] = {}
        for index, trajectory_id in enumerate(self.trajectory_ids):
            indices.setdefault(trajectory_id, []).append(index)
        return {name: np.array(sorted(rows, key=steps.__getitem__)) for name, rows in indices.items()}

    def advantages(self) -> Float32[np.ndarray, " tokens"]:
        """The advantage of each response token: the sample's own parts on each, and the skill's.

        Source: ALGORITHM, section 6.
        """
        per_sample = self.numbers("outcome_advantage") + self.numbers("step_advantage")
        return self.per_token(per_sample) + self.tokens("skill_advantages").values
