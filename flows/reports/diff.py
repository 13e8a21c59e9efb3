"""`opid audit A B`: two commits, of one campaign or of two, side by side."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from flows.reports.chains import Tables, index_of, metrics_of, parse_commit, read_chain, read_tables
from flows.reports.formatting import interval, say, score_text
from infra.store import read_config
from opid_core.evaluation import Paired, SuccessRate, by_temperature, same_tasks, table_success
from opid_core.hashing import ABSENT, config_differences
from opid_core.schema import OUTCOMES, ROUTE_NAMES

EXAMPLES = 3
SAME_PANEL = ("environment.name", "environment.options", "evaluation.split")
"""Config keys that decide what a task id means: where they differ, equal ids are other tasks."""


@dataclass(frozen=True)
class CommitTables:
    """What is compared: the tables of one commit."""

    name: str
    """`<campaign>@<iteration>`."""
    config: Mapping[str, Any]
    tables: Tables
    """Of the iteration; `evaluations` is the newest one that its campaign had then."""


@dataclass(frozen=True)
class MetricPair:
    """A number on both sides; None where it is undefined or missing."""

    name: str
    first: float | None
    second: float | None
    difference: float | None
    """second - first."""


@dataclass(frozen=True)
class CountPair:
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
class CommitDifference:
    """All that two commits differ in."""

    first: str
    second: str
    config: dict[str, tuple[Any, Any]]
    """By key, both values (`config_differences`)."""
    outcomes: tuple[CountPair, ...]
    routes: tuple[CountPair, ...]
    skills: tuple[SkillTexts, ...]
    evaluations: tuple[EvaluationPair, ...]
    metrics: tuple[MetricPair, ...]
    """All by name, wall-clock ones too."""


def read_difference(root: str, endpoint_url: str | None, first: str, second: str) -> CommitDifference:
    """Compare `CAMPAIGN` or `CAMPAIGN@ITERATION` (default: the newest) with another of the same root.

    Raises ConfigError for an unknown campaign or iteration, DataError for a damaged table.
    """
    return difference(_read(root, endpoint_url, first), _read(root, endpoint_url, second))


def difference(first: CommitTables, second: CommitTables) -> CommitDifference:
    """Compare two commits. Pure."""
    config = config_differences(first.config, second.config)
    return CommitDifference(
        first=first.name,
        second=second.name,
        config=config,
        outcomes=_counted(first, second, "trajectories", "outcome", OUTCOMES),
        routes=_counted(first, second, "routes", "route", ROUTE_NAMES),
        skills=_skills(first, second),
        evaluations=_evaluations(first, second, config),
        metrics=_metrics(first, second),
    )


def show_difference(between: CommitDifference, console: Console) -> None:
    """Print a difference."""
    say(console, f"{between.first} and {between.second}", "bold")
    if between.config:
        _show_table(
            console, "Config", ["key"], between, [[key, *map(_json, pair)] for key, pair in between.config.items()]
        )
    else:
        console.print("Config: the same.")
    for title, counts in (("Outcomes", between.outcomes), ("Routes", between.routes)):
        rows = [[c.name, f"{c.first} ({c.first_share:.1%})", f"{c.second} ({c.second_share:.1%})"] for c in counts]
        _show_table(console, title, [""], between, rows)
    rows = [[f"{s.kind}, {s.outcome}", *map(str, (s.both, s.only_first, s.only_second))] for s in between.skills]
    _show_table(console, "Skill texts", ["kind, outcome", "in both"], between, rows, only="only ")
    for skills in between.skills:
        for name, texts in ((between.first, skills.examples_first), (between.second, skills.examples_second)):
            for text in texts:
                say(console, f"only {name}: {skills.kind}, {skills.outcome}: {text}")
    if not between.evaluations:
        console.print("Evaluations: none at a temperature that both have.")
    for pair in between.evaluations:
        _show_evaluation(console, between, pair)
    rows = [[m.name, *map(_number, (m.first, m.second)), _number(m.difference, "+")] for m in between.metrics]
    shown = [row for row in rows if not row[0].endswith("_s")]
    _show_table(console, "Metrics", ["name"], between, shown, right=["difference"])


def _read(root: str, endpoint_url: str | None, text: str) -> CommitTables:
    campaign, iteration = parse_commit(text)
    store, chain = read_chain(root, campaign, endpoint_url)
    index = index_of(store, chain, iteration)
    tables = read_tables(store, chain[index])
    evaluated = next((m for m in reversed(chain[: index + 1]) if "evaluations" in m.tables), chain[index])
    tables |= read_tables(store, evaluated, ["evaluations"])
    return CommitTables(f"{campaign}@{chain[index].iteration}", read_config(store), tables)


def _counted(
    first: CommitTables, second: CommitTables, table: str, column: str, names: Sequence[str]
) -> tuple[CountPair, ...]:
    one, other = (
        Counter(side.tables[table].column(column).to_pylist() if table in side.tables else [])
        for side in (first, second)
    )
    return tuple(
        CountPair(name, one[name], other[name], one[name] / max(1, one.total()), other[name] / max(1, other.total()))
        for name in names
    )


def _metrics(first: CommitTables, second: CommitTables) -> tuple[MetricPair, ...]:
    one, other = (metrics_of(side.tables["metrics"]) if "metrics" in side.tables else {} for side in (first, second))
    pairs = [(name, one.get(name), other.get(name)) for name in sorted({*one, *other})]
    return tuple(MetricPair(name, a, b, None if a is None or b is None else b - a) for name, a, b in pairs)


def _skills(first: CommitTables, second: CommitTables) -> tuple[SkillTexts, ...]:
    one, other = _texts(first), _texts(second)
    pairs = [(key, one.get(key, set()), other.get(key, set())) for key in sorted({*one, *other})]
    return tuple(
        SkillTexts(
            *key,
            both=len(a & b),
            only_first=len(a - b),
            only_second=len(b - a),
            examples_first=tuple(sorted(a - b)[:EXAMPLES]),
            examples_second=tuple(sorted(b - a)[:EXAMPLES]),
        )
        for key, a, b in pairs
    )


def _texts(side: CommitTables) -> dict[tuple[str, str], set[str]]:
    texts: dict[tuple[str, str], set[str]] = {}
    if "skills" in side.tables:
        for row in side.tables["skills"].select(["kind", "outcome", "text", "error"]).to_pylist():
            text = (row["error"] or "") if row["kind"] == "failed" else row["text"]
            texts.setdefault((row["kind"], row["outcome"]), set()).add(text)
    return texts


def _evaluations(first: CommitTables, second: CommitTables, config: Mapping[str, Any]) -> tuple[EvaluationPair, ...]:
    if "evaluations" not in first.tables or "evaluations" not in second.tables:
        return ()
    same_panel = not any(key == panel or key.startswith(f"{panel}.") for key in config for panel in SAME_PANEL)
    one, other = (by_temperature(side.tables["evaluations"]) for side in (first, second))
    return tuple(
        EvaluationPair(
            temperature,
            first_version=one[temperature].column("policy_version")[0].as_py(),
            second_version=other[temperature].column("policy_version")[0].as_py(),
            first=table_success(one[temperature]),
            second=table_success(other[temperature]),
            paired=same_tasks(one[temperature], other[temperature]) if same_panel else None,
        )
        for temperature in one
        if temperature in other
    )


def _show_evaluation(console: Console, between: CommitDifference, pair: EvaluationPair) -> None:
    sides = (pair.first, pair.second)
    rows = [
        ["updates of the policy", str(pair.first_version), str(pair.second_version)],
        ["episodes", *(str(side.episodes) for side in sides)],
        ["success (micro)", *(f"{side.micro:.1%}" for side in sides)],
        ["95% interval", *(interval(side.low, side.high) for side in sides)],
        ["success (macro)", *(f"{side.macro:.1%}" for side in sides)],
    ]
    if any(side.score for side in sides):
        rows.append(["mean score, 95% interval", *(score_text(side.score) for side in sides)])
    _show_table(console, f"Evaluation, temperature {pair.temperature:g}", [""], between, rows)
    if (p := pair.paired) is None:
        console.print("The panels are not the same tasks: no paired comparison.")
        return
    say(
        console,
        f"The same tasks: {p.both} won by both alike, {p.first_more} by {between.first} alone or more often, "
        f"{p.second_more} by {between.second}, {p.neither} by neither; exact sign test p = {p.p_value:.3g}.",
    )


def _show_table(
    console: Console,
    title: str,
    left: Sequence[str],
    between: CommitDifference,
    rows: Sequence[Sequence[str]],
    *,
    right: Sequence[str] = (),
    only: str = "",
) -> None:
    header = (*left, f"{only}{between.first}", f"{only}{between.second}", *right)
    table = Table(*(Column(name, overflow="fold") for name in header), title=title)  # cut, many names would be alike
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table)


def _number(value: float | None, sign: str = "") -> str:
    return "" if value is None else f"{value:{sign}.5g}"


def _json(value: Any) -> str:
    return value if value is ABSENT else json.dumps(value, ensure_ascii=False)
