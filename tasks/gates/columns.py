"""Tables with list columns as plain columns, which expectations can be about."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from opid_core.samples import Ragged, one_chunk
from opid_core.schema import LOG_PROB_COLUMNS


def plain(table: pa.Table) -> pd.DataFrame:
    """`table` with scalar columns only. A list column x [rows, any] becomes n_x (null where x is) and, for floats,
    n_not_finite_x, n_nonzero_x and max_x (null where x is null or empty); a float column x gains not_finite_x (false
    where null); missing_column names a column that is null in this row and must not be."""
    columns: dict[str, Any] = {}
    missing = np.full(table.num_rows, "", dtype=object)
    for field in table.schema:
        column = one_chunk(table.column(field.name))
        if not field.nullable:
            missing[column.is_null().to_numpy(zero_copy_only=False)] = field.name
        if pa.types.is_list(field.type):
            columns |= _list_columns(field.name, column)
            continue
        columns[field.name] = column.to_pandas()
        if pa.types.is_floating(field.type):
            values = column.to_numpy(zero_copy_only=False)
            columns[f"not_finite_{field.name}"] = ~np.isfinite(values) & column.is_valid().to_numpy(
                zero_copy_only=False
            )
    return pd.DataFrame({**columns, "missing_column": missing})


def _list_columns(name: str, column: Any) -> dict[str, Any]:
    derived = {f"n_{name}": pc.call_function("list_value_length", [column]).to_numpy(zero_copy_only=False)}
    if name not in LOG_PROB_COLUMNS:
        return derived
    ragged = Ragged.from_arrow(column)
    filled = np.flatnonzero(ragged.lengths)  # the rows with tokens
    starts = ragged.offsets[:-1][filled]

    def of_rows(ufunc: np.ufunc, values: np.ndarray, empty: float) -> np.ndarray:
        found = np.full(len(column), empty)
        if len(filled):
            found[filled] = ufunc.reduceat(values, starts)
        return found

    return {
        **derived,
        f"n_not_finite_{name}": of_rows(np.add, (~np.isfinite(ragged.values)).astype(np.int32), 0).astype(int),
        f"n_nonzero_{name}": of_rows(np.add, (ragged.values != 0).astype(np.int32), 0).astype(int),
        f"max_{name}": of_rows(np.maximum, ragged.values, np.nan),
    }
