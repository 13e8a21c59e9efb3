"""What must hold of each table: plain columns derived from it and its related tables, and one suite as data a table.

Pure functions, free of Great Expectations: `tasks.gates.run` runs the suites. One small file a group of tables.
"""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

from tasks.gates.expectations import (
    Expectation,
    at_least,
    equal,
    has_text,
    in_range,
    in_set,
    is_finite,
    unique,
    warn,
)
from tasks.gates.frame import KEYS, RELATED, Frame, Limits
from tasks.gates.results import evaluations, metrics
from tasks.gates.rollouts import steps, trajectories
from tasks.gates.scores import routes, scores
from tasks.gates.skills import skills

__all__ = [
    "KEYS",
    "RELATED",
    "Expectation",
    "Frame",
    "Limits",
    "at_least",
    "equal",
    "frames",
    "has_text",
    "in_range",
    "in_set",
    "is_finite",
    "unique",
    "warn",
]

_FRAMES = {
    "steps": steps,
    "trajectories": trajectories,
    "skills": skills,
    "routes": routes,
    "scores": scores,
    "metrics": metrics,
    "evaluations": evaluations,
}


def frames(name: str, table: pa.Table, related: Mapping[str, pa.Table], limits: Limits) -> list[Frame]:
    """The derived frames of table `name`, each with its suite: first the table's own rows. Pure."""
    return _FRAMES[name](table, related, limits)
