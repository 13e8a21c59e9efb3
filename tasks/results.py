"""What a stage of an iteration has made, and from what."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pydantic import Field, ValidationError, field_validator

from infra.manifest import FolderRecord, GateResult, Manifest, Record, Tables, problems
from opid_core.config import CampaignConfig
from opid_core.errors import DataError
from opid_core.hashing import training_hash
from tasks.version import code_version


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


def made_from(config: CampaignConfig, parent: Manifest | None) -> dict[str, str]:
    """What the stages of the iteration after `parent` (None: of the start) are made from: a record that says otherwise
    is not gone on with."""
    return {
        "parent": parent.content if parent else "",
        "config": training_hash(config),
        "code_version": code_version(),
    }
