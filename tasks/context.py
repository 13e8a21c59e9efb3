"""What the stages of an iteration are given and hand on: small, plain, serialisable."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import Field, field_validator

from infra.manifest import FileRecord, FolderRecord, GateResult, Record
from infra.store import CampaignStore
from opid_core.config import CampaignConfig


class Policy(Record):
    """A policy in the store: the one after `version` updates."""

    version: int
    folder: FolderRecord


@dataclass(frozen=True)
class Place:
    """Where a stage works: one try at one iteration (`start`: the initial policy and its evaluation)."""

    config: CampaignConfig
    store: CampaignStore
    iteration: int | Literal["start"]
    seed: int
    """Of the iteration."""
    parent: str
    """`content` of the manifest before, "" at the start: what a stage's result depends on beside its inputs."""
    attempt: int
    """How many tries at the iteration failed before this one."""
    since_s: float
    """When the iteration began (`time.monotonic`): the end of the one before it."""
    degrade: bool = field(default=False, kw_only=True)
    """Whether an exceeded failure budget is recorded instead of failing the gate."""


@dataclass(frozen=True)
class Context(Place):
    """A place with policies."""

    policy: Policy
    """The policy that rolls out and scores, made by the iteration before."""
    reference: Policy
    """The policy of the start, which the KL term stays close to."""


class StageResult(Record):
    """What a stage hands on: records of what it wrote, and numbers."""

    tables: dict[str, FileRecord] = Field(default_factory=dict)
    gates: tuple[GateResult, ...] = ()
    metrics: Mapping[str, float | None] = Field(default_factory=dict)
    """An undefined number (given as nan) is null."""
    policy: Policy | None = None
    """The policy that the stage made."""
    reused: bool = Field(default=False, exclude=True)
    """Whether an earlier, interrupted run of the iteration made it."""

    @field_validator("metrics", mode="before")
    @classmethod
    def _undefined_is_null(cls, metrics: Mapping[str, Any]) -> dict[str, Any]:
        return {name: None if value is None or math.isnan(value) else float(value) for name, value in metrics.items()}


def merge(*results: StageResult) -> StageResult:
    """Several results as one."""
    return StageResult(
        tables={name: record for result in results for name, record in result.tables.items()},
        gates=tuple(gate for result in results for gate in result.gates),
        metrics={name: value for result in results for name, value in result.metrics.items()},
    )
