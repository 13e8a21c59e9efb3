"""A campaign as its page shows it: one row an iteration, from small tables and the manifests alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from flows.reports.audit.charts import COLOURS, LARGE_MARGINS, SMALL_MARGINS, Chart, Point, Series, nice_top
from flows.reports.audit.data import new_skills
from flows.reports.chains import Evaluated, first_and_last, read_tables
from flows.reports.formatting import quantity, with_interval
from infra.manifest import BrokenExpectation, Manifest
from infra.objects import in_parallel, small_at_once
from infra.stages import failures
from infra.store import CampaignStore, read_table
from opid_core.evaluation import Estimate, SuccessRate, rows_by, success_metrics, table_success
from opid_core.skills.counts import COLUMNS as ANALYSIS_COLUMNS
from opid_core.skills.counts import analysis_metrics, skill_texts

COLUMNS = ("task_id", "task_type", "outcome", "score")
"""What a row takes of `trajectories` where its manifest does not hold it."""


@dataclass(frozen=True)
class Finding:
    """An expectation that did not hold."""

    table: str
    result: BrokenExpectation


@dataclass(frozen=True)
class CommitRow:
    """One commit of a campaign."""

    manifest: Manifest
    metrics: Mapping[str, float | None]
    """The manifest's headlines."""
    success: Estimate | None
    """Share of the training rollouts that were won; None at the start."""
    score: Estimate | None
    episodes: int
    analyses: int
    failed_analyses: int
    """With those that hindsight stood in for."""
    analyzer_tokens: int
    analyzer_seconds: float
    analyzer_cost: float | None
    """At the configured prices; None where no call has one."""
    new_texts: int
    """Skill texts that the iteration before had not."""
    given_up: Sequence[dict[str, Any]]
    """Why and when earlier attempts at the iteration were given up."""

    @property
    def name(self) -> str:
        """The iteration, as text."""
        return str(self.manifest.iteration)

    @cached_property
    def findings(self) -> list[Finding]:
        return [Finding(table, result) for table, gate in self.manifest.gates.items() for result in gate.broken]

    @property
    def evaluated(self) -> list[tuple[str, float | None, float | None]]:
        """Panel, success and score (None: there is none) of each evaluation."""
        end = "/success_micro"
        names = sorted(name for name in self.metrics if name.startswith("evaluation/") and name.endswith(end))
        return [
            (name.split("/")[1], self.metrics[name], self.metrics.get(name.removesuffix(end) + "/score"))
            for name in names
        ]

    @cached_property
    def expectations(self) -> int:
        return sum(len(gate.held) + len(gate.broken) for gate in self.manifest.gates.values())


def commit_rows(store: CampaignStore, chain: Sequence[Manifest], known: Sequence[CommitRow] = ()) -> list[CommitRow]:
    """A row for each manifest of `chain`, whose first ones are `known`."""
    new, at_once = chain[len(known) :], small_at_once(store.address())
    return [*known, *in_parallel(lambda manifest: _row(store, chain, manifest), new, at_once)]


def texts_before(store: CampaignStore, chain: Sequence[Manifest], iteration: int) -> set[str]:
    """The skills' texts of the iteration before `iteration`."""
    record = chain[iteration - 1].tables.get("skills") if iteration else None
    return set() if record is None else skill_texts(read_table(store, record, ["text"]))


def added_last(store: CampaignStore, chain: Sequence[Manifest]) -> list[dict[str, Any]]:
    """The skills of the newest iteration whose texts the one before had not."""
    skills = read_tables(store, chain[-1], ["skills"]).get("skills")
    return [] if skills is None else new_skills(skills, texts_before(store, chain, len(chain) - 1))


def training_points(rows: Sequence[CommitRow], name: str = "") -> list[Point]:
    """Success of the training rollouts by iteration, with 95% intervals; `name` stands first in their notes."""
    return [
        Point(
            row.manifest.iteration - 1,
            row.success.mean,
            row.success.low,
            row.success.high,
            f"{name}iteration {row.name}: {share_text(row.success)}, {quantity(row.episodes, 'episode')}",
        )
        for row in rows
        if row.success is not None and row.episodes
    ]


def evaluation_points(evaluated: Sequence[Evaluated], temperature: float, name: str = "") -> list[Point]:
    """Success of the evaluations at a temperature by update, with 95% intervals; `name` stands first in their notes."""
    return [
        Point(
            e.policy_version,
            e.success.micro,
            e.success.low,
            e.success.high,
            f"{name}after {quantity(e.policy_version, 'update')}: "
            f"{with_interval(e.success.micro, e.success.low, e.success.high)}, "
            f"{quantity(e.success.episodes, 'episode')}",
        )
        for e in evaluated
        if e.temperature == temperature and e.success.episodes
    ]


def success_chart(rows: Sequence[CommitRow], evaluated: Sequence[Evaluated], panel: str) -> Chart:
    """Success of the training rollouts by iteration, and of the `panel` by update."""
    training = training_points(rows)
    series = [Series("training rollouts (other tasks each time)", "#6b7280", training, banded=True)] if training else []
    for number, temperature in enumerate(sorted({e.temperature for e in evaluated})):
        series.append(
            Series(
                f"{panel}, temperature {temperature:g}",
                COLOURS[number % len(COLOURS)],
                evaluation_points(evaluated, temperature),
                shift=4 * len(series),
            )
        )
    return Chart(series, 940, 300, 1.0, LARGE_MARGINS)


def small_charts(rows: Sequence[CommitRow]) -> list[tuple[str, str, Chart]]:
    """Title, format of a value and chart of the numbers that tell whether skills can be trusted."""
    trained = [row for row in rows if row.success is not None]
    wanted = [
        (
            "critical share: steps with a step skill",
            "{:.1%}",
            [row.metrics.get("routes/step") for row in trained],
        ),
        ("trajectories with an episode skill", "{:.1%}", [row.metrics.get("skills/coverage") for row in trained]),
        ("failed analyses", "{:.1%}", [share(row.failed_analyses, row.analyses) for row in trained]),
        ("new skill texts", "{:,.0f}", [float(row.new_texts) for row in trained]),
    ]
    charts = [_order_chart(rows, kind) for kind in ("episode", "step") if _orders(rows, kind, "order")]
    for title, form, values in wanted:
        points = [
            Point(row.manifest.iteration - 1, value, value, value, f"iteration {row.name}: {form.format(value)}")
            for row, value in zip(trained, values, strict=True)
            if value is not None and math.isfinite(value)
        ]
        chart = Chart([Series(title, "#374151", points)], 300, 110, nice_top([p.value for p in points]), SMALL_MARGINS)
        ticks = form.replace(",.0f", ",g")  # half of an odd top is no whole number
        charts.append((title, ticks.replace(".1%", ".0%") if chart.top >= 0.1 else ticks, chart))
    return charts


def before_and_after(
    evaluated: Sequence[Evaluated],
) -> list[tuple[float, int, list[tuple[str, SuccessRate, SuccessRate]]]]:
    """Of each temperature with several evaluations: the temperature, the updates of the newest, and by task type (for
    search-based QA: data set) success at the first and at the newest, where there are several types."""
    found = []
    for first, last in first_and_last(evaluated):
        types = sorted({*first.success.per_type, *last.success.per_type})
        rows = [(name, _success_of(first, name), _success_of(last, name)) for name in types]
        if len(rows) > 1:
            found.append((first.temperature, last.policy_version, rows))
    return found


def _success_of(evaluated: Evaluated, task_type: str) -> SuccessRate:
    of_type = rows_by(evaluated.episodes, "task_type")
    return table_success(of_type.get(task_type, evaluated.episodes.slice(0, 0)))


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
        series.append(Series("their placebo", "#9ca3af", placebo, shift=4))
    title = f"order by {kind} skills (50%: none{'; grey: their placebo' if placebo else ''})"
    return title, "{:.0%}", Chart(series, 300, 110, 1.0, SMALL_MARGINS)


def total_cost(costs: Sequence[float | None]) -> float | None:
    """The sum of what is known, None where nothing is."""
    known = [cost for cost in costs if cost is not None]
    return sum(known) if known else None


def share(part: int, whole: int) -> float | None:
    """`part / whole`, None of nothing."""
    return part / whole if whole else None


def share_text(share: Estimate) -> str:
    """A share with its 95% interval."""
    return with_interval(share.mean, share.low, share.high)


def _row(store: CampaignStore, chain: Sequence[Manifest], manifest: Manifest) -> CommitRow:
    metrics = _metrics(store, chain, manifest)

    def whole(name: str) -> int:
        return int(metrics.get(name) or 0)

    return CommitRow(
        manifest=manifest,
        metrics=metrics,
        success=_estimate(metrics, "rollout/success_micro", "rollout/success"),
        score=_estimate(metrics, "rollout/score", "rollout/score"),
        episodes=whole("rollout/episodes"),
        analyses=whole("analyses/count"),
        failed_analyses=whole("analyses/with_error"),
        analyzer_tokens=whole("analyses/tokens"),
        analyzer_seconds=metrics.get("seconds/analyses_s") or 0.0,
        analyzer_cost=metrics.get("analyses/cost"),
        new_texts=whole("skills/new_texts"),
        given_up=failures(store, manifest.iteration),
    )


def _metrics(store: CampaignStore, chain: Sequence[Manifest], manifest: Manifest) -> Mapping[str, float | None]:
    """The headlines of a commit; from its tables, what the program that made it did not write there."""
    if "analyses/count" in manifest.metrics or "skills" not in manifest.tables:
        return manifest.metrics
    trajectories = read_table(store, manifest.tables["trajectories"], COLUMNS)
    skills = read_table(store, manifest.tables["skills"], ANALYSIS_COLUMNS)
    counted = analysis_metrics(skills, texts_before(store, chain, manifest.iteration))
    counted |= success_metrics("rollout", table_success(trajectories))
    return {**manifest.metrics, **{name: value for name, value in counted.items() if not math.isnan(value)}}


def _estimate(metrics: Mapping[str, float | None], mean: str, bounds: str) -> Estimate | None:
    """A mean with the bounds of its interval, nan where none of its episodes counts."""
    if f"{bounds}_low" not in metrics:
        return None
    values = (metrics.get(name) for name in (mean, f"{bounds}_low", f"{bounds}_high"))
    return Estimate(*(math.nan if value is None else value for value in values))
