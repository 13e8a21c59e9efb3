"""What a stage of an iteration has made."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pydantic import Field, ValidationError, field_validator

from infra.manifest import FolderRecord, GateResult, Record, Tables, problems
from opid_core.errors import DataError


class StageResult(Record):
    """What a stage hands on: records of what it wrote, and numbers."""

    tables: Tables = Field(default_factory=dict)
    gates: tuple[GateResult, ...] = ()
    metrics: Mapping[str, float | None] = Field(default_factory=dict)
    """An undefined number (given as nan) is null."""
    policy: FolderRecord | None = None
    """The policy that the stage made."""

    @field_validator("metrics", mode="before")
    @classmethod
    def _undefined_is_null(cls, metrics: Mapping[str, Any]) -> dict[str, Any]:
        return {name: None if value is None or math.isnan(value) else float(value) for name, value in metrics.items()}


def read_result(stored: Mapping[str, Any]) -> StageResult:
    """What a stage's record holds. Raises DataError for what no stage can have made."""
    try:
        return StageResult.model_validate(stored)
    except ValidationError as error:
        raise DataError(f"its record holds no result of a stage: {problems(error)}") from None
