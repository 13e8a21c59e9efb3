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
        try:
            return {n: None if value is None or math.isnan(value) else float(value) for n, value in metrics.items()}
        except (AttributeError, OverflowError, TypeError) as error:  # stored as something else
            raise ValueError(f"no numbers by their names: {error}") from None


def read_result(stored: Mapping[str, Any]) -> StageResult:
    """What a stage's record holds. Raises DataError for what no stage can have made."""
    try:
        return StageResult.model_validate(stored)
    except ValidationError as error:
        raise DataError(f"its record holds no result of a stage: {problems(error)}") from None


def evaluation_due(config: CampaignConfig, iteration: int) -> int:
    """How many tasks to evaluate after `iteration`: the final panel before training and after the last iteration, 0
    when it is not due."""
    if iteration in (0, config.iterations):
        return config.evaluation.final_tasks or config.evaluation.tasks
    every = config.evaluation.every
    return config.evaluation.tasks if every and iteration % every == 0 else 0


def is_evaluated(config: CampaignConfig, last: Manifest) -> bool:
    """Whether the `last` commit of a campaign has the evaluation that is due after the last iteration: where
    `iterations` was lowered to what is committed, it was made as one of several."""
    rows = last.tables["evaluations"].rows if "evaluations" in last.tables else 0
    return rows == evaluation_due(config, config.iterations) * config.evaluation.passes


def made_from(config: CampaignConfig, parent: Manifest | None, stage: str) -> dict[str, str]:
    """What a stage of the iteration after `parent` (None: of the start) is made from: a record that says otherwise is
    not gone on with."""
    inputs = {
        "parent": parent.content if parent else "",
        "config": training_hash(config),
        "code_version": code_version(),
    }
    if stage == "evaluate":  # `iterations`, which may change, decides which panel it is
        inputs["panel"] = f"{evaluation_due(config, parent.iteration + 1 if parent else 0)} tasks"
    return inputs
