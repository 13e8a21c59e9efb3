"""The gates on made-up rows."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from infra.manifest import GateResult
from opid_core.schema import from_rows
from tasks.gates import run as gates
from tests.tasks.gates.valid_tables import LIMITS, Rows

LEAK = "The answer is: old PARIS!"
"""A skill that tells a text that `LIMITS` forbids."""


def tables(rows: Rows) -> dict[str, pa.Table]:
    return {name: from_rows(name, rows[name]) for name in rows}


def checked(name: str, rows: Rows, limits: dict[str, Any] | None = None) -> GateResult:
    built = tables(rows)
    return gates.check(name, built[name], built, **(LIMITS[name] if limits is None else limits))


def warnings(name: str, rows: Rows, limits: dict[str, Any] | None = None) -> list[tuple[str, str]]:
    """(expectation, column) of each warning of a table that passes."""
    result = checked(name, rows, limits)
    assert result.passed
    assert all(warning.failing_rows for warning in result.warnings)
    return [(warning.expectation.removeprefix("expect_"), warning.column) for warning in result.warnings]
