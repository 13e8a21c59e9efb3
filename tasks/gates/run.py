"""Gates: one suite of Great Expectations a table (`tasks.gates`). A table that breaks its suite is never committed."""

from __future__ import annotations

import difflib
import functools
import itertools
import json
import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from infra.manifest import BrokenExpectation, GateResult, HeldExpectation
from opid_core.config import GatesConfig
from opid_core.errors import ConfigError, DataError, FailureBudgetExceeded, GateError
from opid_core.schema import TABLES, from_rows
from tasks.gates import RELATED, Expectation, Frame, Limits, frames
from tasks.gates.frame import with_fault
from tasks.gates.user_expectations import user_expectations, with_user_expectations

SHOWN_ROWS = 10
"""How many failing rows a result names."""
SHOWN_CHARS = 200
"""How much of a text in such a row."""
_BOOKKEEPING = ("id", "meta", "notes", "result_format", "description", "catch_exceptions", "rendered_content")
_BOOKKEEPING += ("severity", "windows", "batch_id")
"""Fields of every expectation class that are no arguments of it."""


def check(
    name: str, table: pa.Table, related: Mapping[str, pa.Table], *, degrade: bool = False, **limits: Any
) -> GateResult:
    """Validate `table` against the suite of table `name` and the user's own expectations; `related` holds at least the
    tables of `RELATED[name]`.

    `limits` are the fields of `Limits`. Expectations of severity `warn` are recorded only; so is, to `degrade`, an
    exceeded failure budget. Raises GateError that names the table, each broken expectation, its column and the first
    failing rows, as FailureBudgetExceeded where nothing else is broken; DataError for an unknown table or a missing
    related one.
    """
    if name not in TABLES:
        raise DataError(f"gate: unknown table {name!r}; known tables: {', '.join(TABLES)}")
    missing = [other for other in RELATED[name] if other not in related]
    if missing:
        raise DataError(f"gate of table {name}: needs the related tables {', '.join(missing)}")
    _check_columns(name, table)
    bounds = Limits(**limits)
    own = user_expectations(name, table, related, bounds.settings)
    checked = [
        (expectation, result)
        for frame in with_user_expectations(frames(name, table, related, bounds), own)
        for expectation, result in zip(frame.suite, _validate(frame), strict=True)
    ]
    broken = [(e, result) for e, result in checked if isinstance(result, BrokenExpectation)]
    failed = [(e, result) for e, result in broken if result.severity == "fail"]
    only_budget = all(e.budget for e, _ in failed)
    if failed and not (degrade and only_budget):
        error = FailureBudgetExceeded if only_budget else GateError
        raise error("\n".join(_describe(name, result) for _, result in failed))
    return GateResult(
        table=name,
        passed=True,
        held=tuple(result for _, result in checked if not isinstance(result, BrokenExpectation)),
        broken=tuple(result for _, result in broken),
        degraded=tuple(f"{e.budget} ({result.observed})" for e, result in failed),
    )


def check_user_expectations(settings: GatesConfig) -> None:
    """Try the user's own expectations on tables without rows, so that what is wrong with them is known before any work.

    Raises ConfigError that names the key and the allowed values. Where there are any, imports Great Expectations, which
    takes seconds.
    """
    if not settings.expectations and not settings.plugins:
        return
    empty = {name: from_rows(name, []) for name in TABLES}
    for name in TABLES:
        rows = frames(name, empty[name], empty, Limits(settings=settings))[0].rows
        for where, own in user_expectations(name, empty[name], empty, settings):
            suite, columns = (own.suite, own.rows) if isinstance(own, Frame) else ((own,), rows)
            for expectation in suite:
                _check_expectation(expectation, where, list(columns))


def _check_expectation(expectation: Expectation, where: str, columns: Sequence[str]) -> None:
    _batches()
    from great_expectations import expectations
    from pydantic.v1 import ValidationError

    kind, arguments = getattr(expectations, expectation.kind, None), expectation.arguments
    if kind is None:
        known = [name for name in dir(expectations) if name.startswith("Expect") and name != "Expectation"]
        near = difflib.get_close_matches(expectation.kind, known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigError(f"{where}: unknown expectation {expectation.kind!r}; {hint}known: {', '.join(known)}")
    try:
        kind(**arguments)
    except ValidationError as error:
        allowed = ", ".join(field for field in kind.__fields__ if field not in _BOOKKEEPING)
        wrong = "; ".join(f"{'.'.join(map(str, p['loc']))}: {p['msg']}" for p in error.errors())
        raise ConfigError(f"{where}: {expectation.kind}: {wrong}; its arguments are: {allowed}") from None
    unknown = [column for column in _named_columns(expectation) if column not in columns]
    if unknown:
        raise ConfigError(f"{where}: no column {unknown[0]!r}; columns: {', '.join(columns)}")


def _named_columns(expectation: Expectation) -> list[str]:
    """The columns that an expectation is about; none: about the table."""
    arguments = expectation.arguments
    named = [arguments[key] for key in ("column", "column_A", "column_B") if key in arguments]
    return [*named, *arguments.get("column_list", ())]


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


def _validate(frame: Frame) -> list[HeldExpectation | BrokenExpectation]:
    """Results of the frame's suite. Failing rows are collected in a last pass, over what failed alone: it is slow."""
    suite = frame.suite
    results = [_result(frame, e, found) for e, found in zip(suite, _checked(frame), strict=True)]
    broken = [e for e, result in zip(suite, results, strict=True) if isinstance(result, BrokenExpectation)]
    if not broken:
        return results
    details = iter(_run(frame, broken, "COMPLETE"))
    return [
        _result(frame, e, next(details)) if isinstance(result, BrokenExpectation) else result
        for e, result in zip(suite, results, strict=True)
    ]


def _checked(frame: Frame) -> list[Any]:
    """Great Expectations' result of each expectation of the frame. It takes some 10 ms for one, so rules about single
    rows are checked as one, and each by itself only where that fails."""
    suite = frame.suite
    rules = [n for n, e in enumerate(suite) if e.broken_in and e.severity == "fail" and not e.budget]
    if len(rules) < 2:
        return _run(frame, suite, "BASIC")
    others = [n for n in range(len(suite)) if n not in rules]
    merged = with_fault(frame, [suite[n] for n in rules])
    (of_rules,) = _run(merged, merged.suite, "BASIC")
    # By themselves: one about the whole table, as a user's may be, would count the column that was added.
    of_others = _run(frame, [suite[n] for n in others], "BASIC") if others else []
    found = dict(zip(others, of_others, strict=True)) | dict.fromkeys(rules, of_rules)
    if not of_rules.success:
        found |= dict(zip(rules, _run(frame, [suite[n] for n in rules], "BASIC"), strict=True))
    return [found[n] for n in range(len(suite))]


def _run(frame: Frame, suite: Sequence[Expectation], detail: str) -> list[Any]:
    """Great Expectations' result of each expectation, in the order of `suite`."""
    batch_definition = _batches()
    import great_expectations
    from great_expectations import expectations

    built = [getattr(expectations, e.kind)(**e.arguments, meta={"n": n}) for n, e in enumerate(suite)]
    rows, named = frame.rows, [_named_columns(expectation) for expectation in suite]
    if all(named) and not any("row_condition" in expectation.arguments for expectation in suite):
        # Great Expectations hashes each column that it is given: texts of megabytes take as long as the rest
        rows = rows[[c for c in dict.fromkeys(itertools.chain(*named)) if c in rows]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        validation = batch_definition.get_batch({"dataframe": rows}).validate(
            great_expectations.ExpectationSuite(name="suite", expectations=built), result_format=detail
        )
    return sorted(validation.results, key=lambda result: result.expectation_config.meta["n"])


def _result(frame: Frame, expectation: Expectation, validation: Any) -> HeldExpectation | BrokenExpectation:
    from great_expectations.util import camel_to_snake

    columns = _named_columns(expectation)
    found = validation.result
    positions = (found.get("unexpected_index_list") or [])[:SHOWN_ROWS]
    shown = [c for c in dict.fromkeys([*frame.key, *columns]) if c in frame.rows]
    if "observed_value" in found:
        observed = found["observed_value"]
    elif "unexpected_count" in found:
        observed = f"{found['unexpected_count']} of {found['element_count']} rows"
    else:
        observed = sorted({fault["exception_message"] for fault in validation.exception_info.values()})
    name, column = camel_to_snake(expectation.kind), ", ".join(columns)
    observed = json.loads(json.dumps(observed, default=str), parse_constant=str)
    if validation.success:
        return name, column, observed
    return BrokenExpectation(
        expectation=name,
        column=column,
        severity=expectation.severity,
        failing_rows=_shown(frame, positions, shown) if positions else (),
        observed=observed,
    )


def _shown(frame: Frame, positions: Sequence[int], columns: Sequence[str]) -> tuple[dict[str, Any], ...]:
    """The rows at `positions` as JSON has them, long texts cut."""
    rows = json.loads(frame.rows.iloc[positions][[*columns]].to_json(orient="records"))
    return tuple(
        {column: value[:SHOWN_CHARS] if isinstance(value, str) else value for column, value in row.items()}
        for row in rows
    )


def _describe(name: str, result: BrokenExpectation) -> str:
    rows = "".join(f"\n  {json.dumps(row, ensure_ascii=False)}" for row in result.failing_rows)
    column = f" on column {result.column}" if result.column else ""
    return f"table {name}: {result.expectation}{column} failed ({result.observed}){rows}"
