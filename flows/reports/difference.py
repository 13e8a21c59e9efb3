"""Two committed iterations, of one campaign or of two, side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from opid_core.evaluation import Paired, SuccessRate, by_temperature, same_tasks, table_success
from opid_core.schema import OUTCOMES, ROUTE_NAMES

EXAMPLES = 3
SAME_PANEL = ("environment.name", "environment.options", "evaluation.split")
"""Config keys that decide what a task id means: where they differ, equal ids are other tasks."""


@dataclass(frozen=True)
class Side:
    """What is compared: one committed iteration."""

    name: str
    """`<campaign>@<iteration>`."""
    config: Mapping[str, Any]
    tables: Mapping[str, pa.Table]
    """Of the iteration; `evaluations` is the newest one that its campaign had then."""


@dataclass(frozen=True)
class Compared:
    """A number on both sides; None where it is undefined or missing."""

    name: str
    first: float | None
    second: float | None
    difference: float | None
    """second - first."""


@dataclass(frozen=True)
class Counted:
    """Rows of one kind: how many, and which share of their table."""

    name: str
    first: int
    second: int
    first_share: float
    second_share: float


@dataclass(frozen=True)
class SkillTexts:
    """Distinct skill texts of one kind after one outcome; of kind `failed` the errors."""

    kind: str
    outcome: str
    both: int
    only_first: int
    only_second: int
    examples_first: tuple[str, ...]
    """The first few in alphabetical order."""
    examples_second: tuple[str, ...]


@dataclass(frozen=True)
class EvaluationPair:
    """Success on the held-out panels at one temperature."""

    temperature: float
    first_version: int
    """Number of updates behind the evaluated policy."""
    second_version: int
    first: SuccessRate
    second: SuccessRate
    paired: Paired | None
    """None where the panels are not the same tasks."""


@dataclass(frozen=True)
class ConfigChange:
    """A config key whose values differ; an absent value is None."""

    key: str
    first: Any
    second: Any


@dataclass(frozen=True)
class Difference:
    """All that two iterations differ in."""

    first: str
    second: str
    config: tuple[ConfigChange, ...]
    outcomes: tuple[Counted, ...]
    routes: tuple[Counted, ...]
    skills: tuple[SkillTexts, ...]
    evaluations: tuple[EvaluationPair, ...]
    metrics: tuple[Compared, ...]
    """All by name, wall-clock ones too."""


def difference(first: Side, second: Side) -> Difference:
    """Compare two iterations. Pure."""
    changes = tuple(_config_changes(first.config, second.config))
    return Difference(
        first=first.name,
        second=second.name,
        config=changes,
        outcomes=_counted(first, second, "trajectories", "outcome", OUTCOMES),
        routes=_counted(first, second, "routes", "route", ROUTE_NAMES),
        skills=_skills(first, second),
        evaluations=_evaluations(first, second, changes),
        metrics=_metrics(first, second),
    )


def _column(side: Side, table: str, column: str) -> list[Any]:
    return side.tables[table].column(column).to_pylist() if table in side.tables else []


def _counted(first: Side, second: Side, table: str, column: str, names: Sequence[str]) -> tuple[Counted, ...]:
    one, other = (Counter(_column(side, table, column)) for side in (first, second))
    shares = [counter[name] / max(1, counter.total()) for name in names for counter in (one, other)]
    return tuple(
        Counted(name, one[name], other[name], *shares[2 * place : 2 * place + 2]) for place, name in enumerate(names)
    )


def _metrics(first: Side, second: Side) -> tuple[Compared, ...]:
    one, other = (
        dict(zip(_column(side, "metrics", "name"), _column(side, "metrics", "value"), strict=True))
        for side in (first, second)
    )
    found = []
    for name in sorted({*one, *other}):
        a, b = one.get(name), other.get(name)
        found.append(Compared(name, a, b, None if a is None or b is None else b - a))
    return tuple(found)


def _skills(first: Side, second: Side) -> tuple[SkillTexts, ...]:
    one, other = _texts(first), _texts(second)
    found = []
    for kind, outcome in sorted({*one, *other}):
        a, b = one.get((kind, outcome), set()), other.get((kind, outcome), set())
        found.append(
            SkillTexts(
                kind,
                outcome,
                both=len(a & b),
                only_first=len(a - b),
                only_second=len(b - a),
                examples_first=tuple(sorted(a - b)[:EXAMPLES]),
                examples_second=tuple(sorted(b - a)[:EXAMPLES]),
            )
        )
    return tuple(found)


def _texts(side: Side) -> dict[tuple[str, str], set[str]]:
    texts: dict[tuple[str, str], set[str]] = {}
    if "skills" in side.tables:
        for row in side.tables["skills"].select(["kind", "outcome", "text", "error"]).to_pylist():
            text = (row["error"] or "") if row["kind"] == "failed" else row["text"]
            texts.setdefault((row["kind"], row["outcome"]), set()).add(text)
    return texts


def _evaluations(first: Side, second: Side, changes: Sequence[ConfigChange]) -> tuple[EvaluationPair, ...]:
    if "evaluations" not in first.tables or "evaluations" not in second.tables:
        return ()
    same = not any(change.key == key or change.key.startswith(f"{key}.") for change in changes for key in SAME_PANEL)
    one, other = (by_temperature(side.tables["evaluations"]) for side in (first, second))
    return tuple(
        EvaluationPair(
            temperature,
            first_version=one[temperature].column("policy_version")[0].as_py(),
            second_version=other[temperature].column("policy_version")[0].as_py(),
            first=table_success(one[temperature]),
            second=table_success(other[temperature]),
            paired=same_tasks(one[temperature], other[temperature]) if same else None,
        )
        for temperature in one
        if temperature in other
    )


def _config_changes(first: Any, second: Any, key: str = "") -> Iterator[ConfigChange]:
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        for name in sorted({*first, *second}):
            yield from _config_changes(first.get(name), second.get(name), f"{key}.{name}" if key else name)
    elif first != second:
        yield ConfigChange(key, first, second)
