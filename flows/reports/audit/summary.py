"""A campaign as its page shows it: one row an iteration, from small tables and the manifests alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from flows.reports.audit.charts import EVALUATION_COLOURS, Chart, Point, Series, nice_top
from flows.reports.audit.data import analyses, new_skills, skill_texts
from flows.reports.chains import Evaluated, read_tables
from flows.reports.formatting import with_interval
from infra.manifest import ExpectationResult, Manifest
from infra.objects import in_parallel, small_at_once
from infra.stages import failures
from infra.store import CampaignStore, read_table
from opid_core.evaluation import SuccessRate, table_success

COLUMNS = {
    "trajectories": ("task_id", "task_type", "outcome", "score"),
    "skills": ("trajectory_id", "kind", "text", "error", "tokens", "seconds", "cost"),
}
"""What a row of the campaign's page takes of each table: of a thousand commits nothing else is read."""


@dataclass(frozen=True)
class Finding:
    """An expectation that did not hold."""

    table: str
    result: ExpectationResult


@dataclass(frozen=True)
class CommitRow:
    """One commit of a campaign."""

    manifest: Manifest
    success: SuccessRate | None
    """Of the training rollouts; None at the start."""
    analyses: int
    failed_analyses: int
    """With those that hindsight stood in for."""
    analyzer_tokens: int
    analyzer_seconds: float
    analyzer_cost: float | None
    """At the configured prices; None where no call has one."""
    texts: frozenset[str]
    """All skill texts."""
    given_up: Sequence[dict[str, Any]]
    """Why and when earlier attempts at the iteration were given up."""

    @property
    def name(self) -> str:
        """The iteration, as text."""
        return str(self.manifest.iteration)

    @property
    def metrics(self) -> Mapping[str, float | None]:
        """The manifest's headlines."""
        return self.manifest.metrics

    @cached_property
    def findings(self) -> list[Finding]:
        return [
            Finding(table, result)
            for table, gate in self.manifest.gates.items()
            for result in gate.expectations
            if not result.passed
        ]

    @property
    def expectations(self) -> int:
        return sum(len(gate.expectations) for gate in self.manifest.gates.values())


def commit_rows(store: CampaignStore, chain: Sequence[Manifest]) -> list[CommitRow]:
    """A row for each manifest of `chain`."""
    return in_parallel(lambda manifest: _row(store, manifest), chain, small_at_once(store.address()))


def new_counts(rows: Sequence[CommitRow]) -> list[int]:
    """How many skill texts of each row are not in the row before."""
    before = [frozenset(), *(row.texts for row in rows)]
    return [len(row.texts - earlier) for row, earlier in zip(rows, before, strict=False)]


def added_last(store: CampaignStore, chain: Sequence[Manifest], rows: Sequence[CommitRow]) -> list[dict[str, Any]]:
    """The skills of the newest iteration whose texts the one before had not."""
    skills = read_tables(store, chain[-1], ["skills"]).get("skills")
    if skills is None:
        return []
    return new_skills(skills, set(rows[-2].texts) if len(rows) > 1 else set())


def success_chart(rows: Sequence[CommitRow], evaluated: Sequence[Evaluated], panel: str) -> Chart:
    """Success of the training rollouts by iteration, and of the `panel` by update, with 95% intervals."""
    training = [
        Point(
            row.manifest.iteration - 1,
            row.success.micro,
            row.success.low,
            row.success.high,
            f"iteration {row.name}: {success_text(row.success)}, {row.success.episodes} episodes",
        )
        for row in rows
        if row.success is not None and row.success.episodes
    ]
    series = [Series("training rollouts (other tasks each time)", "#6b7280", training, banded=True)] if training else []
    for number, temperature in enumerate(sorted({e.temperature for e in evaluated})):
        points = [
            Point(
                e.policy_version,
                e.success.micro,
                e.success.low,
                e.success.high,
                f"after {e.policy_version} updates: {success_text(e.success)}, {e.success.episodes} episodes",
            )
            for e in evaluated
            if e.temperature == temperature and e.success.episodes
        ]
        colour = EVALUATION_COLOURS[number % len(EVALUATION_COLOURS)]
        series.append(Series(f"{panel}, temperature {temperature:g}", colour, points))
    return Chart(series, 940, 300, 1.0)


def small_charts(rows: Sequence[CommitRow], new: Sequence[int]) -> list[tuple[str, str, Chart]]:
    """Title, format of a value and chart of the numbers that tell whether skills can be trusted."""
    trained = [(row, count) for row, count in zip(rows, new, strict=True) if row.success is not None]
    wanted = [
        (
            "critical share: steps with a step skill",
            "{:.1%}",
            [row.metrics.get("routes/step") for row, _ in trained],
        ),
        ("trajectories with an episode skill", "{:.1%}", [row.metrics.get("skills/coverage") for row, _ in trained]),
        ("failed analyses", "{:.1%}", [share(row.failed_analyses, row.analyses) for row, _ in trained]),
        ("new skill texts", "{:,.0f}", [float(count) for _, count in trained]),
    ]
    charts = [_order_chart(rows, kind) for kind in ("episode", "step") if _orders(rows, kind, "order")]
    for title, form, values in wanted:
        points = [
            Point(row.manifest.iteration - 1, value, value, value, f"iteration {row.name}: {form.format(value)}")
            for (row, _), value in zip(trained, values, strict=True)
            if value is not None and math.isfinite(value)
        ]
        chart = Chart([Series(title, "#374151", points)], 300, 110, nice_top([p.value for p in points]), (40, 20))
        charts.append((title, form.replace(".1%", ".0%") if chart.top >= 0.1 else form, chart))
    return charts


def _orders(rows: Sequence[CommitRow], kind: str, what: str) -> list[Point]:
    """How well a kind of skill (`what`: `order`), or its placebo, orders what was done in one state, by iteration."""
    points = []
    for row in rows:
        value, low, high = (row.metrics.get(f"signal/{kind}/{what}{end}") for end in ("", "_low", "_high"))
        if value is not None:
            low, high = (value if end is None else min(max(end, 0.0), 1.0) for end in (low, high))
            title = f"iteration {row.name}, {what.replace('_', ' ')}: {with_interval(value, low, high)}"
            points.append(Point(row.manifest.iteration - 1, value, low, high, title))
    return points


def _order_chart(rows: Sequence[CommitRow], kind: str) -> tuple[str, str, Chart]:
    series = [Series(f"{kind} skills", "#374151", _orders(rows, kind, "order"), banded=True)]
    if placebo := _orders(rows, kind, "placebo_order"):
        series.append(Series("their placebo", "#9ca3af", placebo))
    title = f"order by {kind} skills (50%: none{'; grey: their placebo' if placebo else ''})"
    return title, "{:.0%}", Chart(series, 300, 110, 1.0, (40, 20))


def total_cost(costs: Sequence[float | None]) -> float | None:
    """The sum of what is known, None where nothing is."""
    known = [cost for cost in costs if cost is not None]
    return sum(known) if known else None


def share(part: int, whole: int) -> float | None:
    """`part / whole`, None of nothing."""
    return part / whole if whole else None


def success_text(success: SuccessRate) -> str:
    """A success rate with its 95% interval."""
    return with_interval(success.micro, success.low, success.high)


def _row(store: CampaignStore, manifest: Manifest) -> CommitRow:
    tables = {
        name: read_table(store, manifest.tables[name], columns)
        for name, columns in COLUMNS.items()
        if name in manifest.tables
    }
    calls = analyses(tables["skills"]) if "skills" in tables else []
    return CommitRow(
        manifest=manifest,
        success=table_success(tables["trajectories"]) if "trajectories" in tables else None,
        analyses=len(calls),
        failed_analyses=sum(row["error"] is not None for row in calls),
        analyzer_tokens=sum(row["tokens"] or 0 for row in calls),
        analyzer_seconds=sum(row["seconds"] or 0.0 for row in calls),
        analyzer_cost=total_cost([row["cost"] for row in calls]),
        texts=frozenset(skill_texts(tables["skills"])) if "skills" in tables else frozenset(),
        given_up=failures(store, manifest.iteration),
    )
