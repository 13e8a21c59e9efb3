"""What a suite is given and makes: limits, related tables, frames of plain rows."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import pyarrow as pa

from opid_core.config import GatesConfig
from tasks.gates.expectations import Expectation, flag, in_set, unique

STEP_KEY = ("trajectory_id", "step")
KEYS: dict[str, tuple[str, ...]] = {
    "steps": STEP_KEY,
    "trajectories": ("trajectory_id",),
    "skills": ("skill_id",),
    "routes": STEP_KEY,
    "scores": STEP_KEY,
    "metrics": ("iteration", "name"),
    "evaluations": ("policy_version", "split", "temperature", "repetition", "task_id"),
}
"""Columns that name a row of each table."""

RELATED: dict[str, tuple[str, ...]] = {
    "steps": ("trajectories",),
    "trajectories": ("steps",),
    "skills": ("steps", "trajectories"),
    "routes": ("steps", "skills"),
    "scores": ("steps", "trajectories", "routes"),
    "metrics": (),
    "evaluations": (),
}
"""Tables that the gate of each table compares it with."""


@dataclass(frozen=True)
class Limits:
    """What a table must satisfy beyond its schema; None asks nothing."""

    settings: GatesConfig = field(default_factory=GatesConfig)
    iteration: int | None = None
    policy_version: int | None = None
    max_prompt_tokens: int | None = None
    max_response_tokens: int | None = None
    group_size: int | None = None
    """Trajectories of each group."""
    max_failure_rate: float | None = None
    """Largest share of failed analyses among the analysed trajectories."""
    analyzed: Collection[str] | None = None
    """Ids of the trajectories that must have skills or a failure; None: those that have rows."""
    forbidden: Mapping[str, Sequence[str]] | None = None
    """Texts that no skill may hold, by task id (`envs.base.HasForbiddenTexts`)."""
    history: Sequence[Mapping[str, float | None]] = ()
    """Metrics of the iterations before, oldest first."""
    required_metrics: Collection[str] | None = None
    panel_size: int | None = None
    """Episodes of an evaluation at each temperature."""


@dataclass(frozen=True)
class Frame:
    """Rows in plain columns, the columns that name a row, and what must hold."""

    rows: pd.DataFrame
    key: tuple[str, ...]
    suite: tuple[Expectation, ...]


def frame_of(name: str, rows: pd.DataFrame, *suite: Expectation) -> Frame:
    """The rows of a table with what holds of every table: the key is unique, no value is missing that must be there."""
    return Frame(rows, KEYS[name], (unique(*KEYS[name]), flag("missing_column", ""), *suite))


def coverage(rows: pd.DataFrame, expected: pd.DataFrame) -> Frame:
    """One row a step that has a row or should have one, with both flags."""
    found = rows[list(STEP_KEY)].drop_duplicates().assign(row_present=True)
    both = found.merge(expected.drop_duplicates().assign(row_expected=True), how="outer", on=list(STEP_KEY))
    flags = {name: both[name].notna() for name in ("row_present", "row_expected")}
    return Frame(both.assign(**flags), STEP_KEY, (flag("row_present"), flag("row_expected")))


def step_keys(steps: pa.Table) -> pd.DataFrame:
    """The key of each step."""
    return steps.select(list(STEP_KEY)).to_pandas()


FAULT = "fault"
"""Column that stands for the rules about single rows of a frame."""


def with_fault(frame: Frame, rules: Sequence[Expectation]) -> Frame:
    """The frame with what stands for all its `rules` about single rows: the column `FAULT` names, of the first that
    a row breaks, its column; it is empty in a row that breaks none. Its suite is that alone."""
    fault = np.full(len(frame.rows), "", dtype=object)
    for rule in reversed(rules):
        assert rule.broken_in is not None
        fault[rule.broken_in(frame.rows).to_numpy(bool)] = rule.arguments.get("column") or rule.arguments["column_A"]
    return Frame(frame.rows.assign(**{FAULT: fault}), frame.key, (in_set(FAULT, [""]),))
