"""The gates on made-up rows."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from infra.manifest import GateResult
from opid_core.config import GatesConfig
from opid_core.schema import from_rows
from tasks.gates import run as gates
from tests.factories import Rows

QUOTE = "As I said: the mug may well be inside of the drawer."
"""A skill that repeats ten words of what the policy wrote in trajectory `a` of `valid_rows`."""
LEAK = "The answer is: old PARIS!"
"""A skill that tells a text that `LIMITS` forbids."""

SETTINGS = GatesConfig(
    max_duplicate_skills=0.4,
    max_near_duplicate_skills=0.4,
    max_copied_words=6,
    max_leaking_skills=0.5,
    min_coverage_trajectories=2,
)
HISTORY = [{"rollout/success_micro": value, "signal/step/above_placebo": 0.2} for value in (0.5, 0.4, 0.5, 0.6, 0.5)]
"""Success: mean 0.5, standard deviation sqrt(0.02 / 4) = 0.0707."""
LIMITS: dict[str, dict[str, Any]] = {
    "steps": {"iteration": 2, "policy_version": 2, "max_prompt_tokens": 2, "max_response_tokens": 3},
    "trajectories": {"iteration": 2, "group_size": 2},
    "skills": {
        "max_failure_rate": 0.5,
        "analyzed": ["a", "b"],
        "settings": SETTINGS,
        "forbidden": {"t": ["Old Paris"]},
    },
    "routes": {},
    "scores": {},
    "metrics": {"iteration": 2, "required_metrics": ["rollout/return"], "history": HISTORY},
    "evaluations": {"policy_version": 3, "panel_size": 2},
}


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
