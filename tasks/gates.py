"""Gates: one suite of Great Expectations a table (`tasks.suites`). A table that breaks its suite is never committed."""

from __future__ import annotations

import functools
import json
import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from infra.manifest import ExpectationResult, GateResult
from opid_core.errors import DataError, GateError
from opid_core.schema import TABLES
from tasks.suites import RELATED, Expectation, Frame, Limits, frames

SHOWN_ROWS = 10
"""How many failing rows a result names."""


def check(name: str, table: pa.Table, related: Mapping[str, pa.Table], **limits: Any) -> GateResult:
    """Validate `table` against the suite of table `name`; `related` holds at least the tables of `RELATED[name]`.

    `limits` are the fields of `Limits`. Raises GateError that names the table, each broken expectation, its column and
    the first failing rows; DataError for an unknown table or a missing related one.
    """
    if name not in TABLES:
        raise DataError(f"gate: unknown table {name!r}; known tables: {', '.join(TABLES)}")
    missing = [other for other in RELATED[name] if other not in related]
    if missing:
        raise DataError(f"gate of table {name}: needs the related tables {', '.join(missing)}")
    _check_columns(name, table)
    results = [r for frame in frames(name, table, related, Limits(**limits)) for r in _validate(frame)]
    failed = [result for result in results if not result.passed]
    if failed:
        raise GateError("\n".join(_describe(name, result) for result in failed))
    return GateResult(table=name, passed=True, expectations=tuple(results))


def _check_columns(name: str, table: pa.Table) -> None:
    expected = {field.name: str(field.type) for field in TABLES[name]}
    given = {field.name: str(field.type) for field in table.schema}
    wrong = [
        f"{column}: expected {expected.get(column, 'no such column')}, got {given.get(column, 'no such column')}"
        for column in {**expected, **given}
        if expected.get(column) != given.get(column)
    ]
    if wrong:
        raise GateError(f"table {name}: wrong columns: {'; '.join(wrong)}")


# Great Expectations -----------------------------------------------------------------------------------------------


@functools.cache
def _batches() -> Any:
    """The definition of batches that are whole data frames. Importing Great Expectations takes seconds: only here."""
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    import great_expectations

    for name in ("great_expectations", "great_expectations.data_context.types.base"):  # the latter sets its own level
        logging.getLogger(name).setLevel(logging.ERROR)
    context = great_expectations.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False, "metric_calculations": False}  # type: ignore[assignment]
    return (
        context.data_sources.add_pandas("tables")
        .add_dataframe_asset("table")
        .add_batch_definition_whole_dataframe("all")
    )


def _validate(frame: Frame) -> list[ExpectationResult]:
    """Results of the frame's suite. Failing rows are collected in a second pass, over what failed alone: it is slow."""
    results = [_result(frame, validation) for validation in _run(frame, frame.suite, "BASIC")]
    failed = tuple(e for e, result in zip(frame.suite, results, strict=True) if not result.passed)
    if not failed:
        return results
    details = iter(_run(frame, failed, "COMPLETE"))
    return [result if result.passed else _result(frame, next(details)) for result in results]


def _run(frame: Frame, suite: Sequence[Expectation], detail: str) -> list[Any]:
    """Great Expectations' result of each expectation, in the order of `suite`."""
    batch_definition = _batches()
    import great_expectations
    from great_expectations import expectations

    built = [getattr(expectations, kind)(**arguments, meta={"n": n}) for n, (kind, arguments) in enumerate(suite)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        validation = batch_definition.get_batch({"dataframe": frame.rows}).validate(
            great_expectations.ExpectationSuite(name="suite", expectations=built), result_format=detail
        )
    return sorted(validation.results, key=lambda result: result.expectation_config.meta["n"])


def _result(frame: Frame, validation: Any) -> ExpectationResult:
    arguments = validation.expectation_config.kwargs
    pair = [arguments[side] for side in ("column_A", "column_B") if side in arguments]
    columns = [arguments["column"]] if "column" in arguments else arguments.get("column_list") or pair
    found = validation.result
    positions = (found.get("unexpected_index_list") or [])[:SHOWN_ROWS]
    shown = [c for c in dict.fromkeys([*frame.key, *columns]) if c in frame.rows]
    if "observed_value" in found:
        observed = found["observed_value"]
    elif "unexpected_count" in found:
        observed = f"{found['unexpected_count']} of {found['element_count']} rows"
    else:
        observed = sorted({fault["exception_message"] for fault in validation.exception_info.values()})
    return ExpectationResult(
        expectation=validation.expectation_config.type,
        column=", ".join(columns),
        passed=bool(validation.success),
        failing_rows=tuple(json.loads(frame.rows.iloc[positions][shown].to_json(orient="records"))),
        observed=json.loads(json.dumps(observed, default=str)),
    )


def _describe(name: str, result: ExpectationResult) -> str:
    rows = "".join(f"\n  {json.dumps(row, ensure_ascii=False)}" for row in result.failing_rows)
    column = f" on column {result.column}" if result.column else ""
    return f"table {name}: {result.expectation}{column} failed ({result.observed}){rows}"
