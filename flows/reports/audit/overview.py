"""One page over several campaigns of a root: where each stands, what came out, and the newest policies compared."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from statistics import fmean
from typing import Any
from urllib.parse import quote

import numpy as np

from flows.output import make_folder
from flows.reports.audit import pages_folder, summary
from flows.reports.audit.charts import COLOURS, LARGE_MARGINS, Chart, Series
from flows.reports.audit.pages import CAMPAIGN_PAGE, page_script, render, write_page
from flows.reports.chains import Evaluated, evaluations, read_chain
from flows.reports.paired import holm
from flows.reports.standing import LONGEST_S, Standing, none_readable, standing_of
from flows.reports.study_tables import TESTS
from infra.manifest import Manifest, uncollected, weights_hash
from infra.objects import address_of
from infra.store import CampaignStore, known_campaigns, list_campaigns, read_config
from opid_core.comparison import PairedDifference, difference
from opid_core.errors import ConfigError, DataError
from opid_core.evaluation import Paired, panel_name, same_tasks, wins_of_same_tasks

OVERVIEW_PAGE = "overview.html"


@dataclass(frozen=True)
class CampaignRow:
    """A campaign of the page."""

    standing: Standing
    config: dict[str, Any]
    start: str | None
    """Hash of the weights that it started from."""
    commits: Sequence[summary.CommitRow]
    evaluated: Sequence[Evaluated] = field(repr=False)
    page: str | None
    """Address of its own page, where that is written."""

    @property
    def skill_share(self) -> float | None:
        """Skills' share of the advantage, the mean over iterations."""
        shares = [s for row in self.commits if (s := row.metrics.get("advantage_share/skill")) is not None]
        return fmean(shares) if shares else None

    @property
    def cost(self) -> float | None:
        return summary.total_cost([row.analyzer_cost for row in self.commits])

    @property
    def took(self) -> timedelta | None:
        """The time that its iterations took."""
        took = [s for row in self.commits if (s := row.metrics.get("seconds/iteration_s")) is not None]
        return timedelta(seconds=round(min(max(0.0, sum(took)), LONGEST_S))) if took else None


@dataclass(frozen=True)
class ResultRow:
    """The first and the newest evaluation of a campaign at one temperature."""

    campaign: str
    panel: str
    first: Evaluated
    last: Evaluated
    change: Paired | None
    """From the first to the last, by task; None where the tasks are not the same."""
    against: PairedDifference | None
    """The newest policy less that of the first campaign of the page; None where the tasks are not the same."""


@uncollected()
def write_overview(
    root: str,
    endpoint_url: str | None,
    campaigns: Sequence[str],
    out: Path | None,
    say: Callable[[str], None] = lambda line: None,
) -> Path:
    """Write the page over `campaigns` (none named: all of the root) into `out`, or beside the campaigns; returns it.

    The first campaign is the one that the others are compared with. One whose files cannot be read, as those of another
    version, is left out, which the page and `say` tell. Raises ConfigError for one that does not exist, DataError where
    none can be read.
    """
    where = address_of(root, endpoint_url)
    names = list(dict.fromkeys(campaigns)) or list_campaigns(root, endpoint_url)
    if not names:
        raise ConfigError(f"audit: no campaign in {where}; {known_campaigns(root, endpoint_url)}")
    folder = where if out is None else make_folder(out.absolute())
    folder = folder if isinstance(folder, Path) else Path("runs").absolute()
    rows: list[CampaignRow] = []
    left_out: dict[str, str] = {}
    for name in names:
        try:
            rows.append(_row(*read_chain(root, name, endpoint_url), folder))
        except DataError as error:
            left_out[name] = str(error)
    if not rows:
        raise none_readable(where, left_out)
    for name, reason in left_out.items():
        say(f"Left out: {name}: {reason}")
    page = folder / OVERVIEW_PAGE
    write_page(page, overview_page(root, rows, left_out))
    return page


def overview_page(root: str, rows: Sequence[CampaignRow], left_out: Mapping[str, str]) -> str:
    """The page as HTML; `left_out`: why others have no row, by name."""
    results = result_rows(rows)
    return render(
        "overview.html.j2",
        script=page_script(),
        root=root,
        rows=rows,
        left_out=left_out,
        colours=[_colour(number) for number in range(len(rows))],
        charts=charts(rows),
        results=results,
        compared=[row for row in results if row.against],
        tests=TESTS,
    )


def result_rows(rows: Sequence[CampaignRow]) -> list[ResultRow]:
    """A row for each campaign and temperature that was evaluated; p-values against the first campaign are corrected
    for all of them together (Holm)."""
    found = [
        (row, of_temperature[0], of_temperature[-1])
        for row in rows
        for temperature in sorted({e.temperature for e in row.evaluated})
        if (of_temperature := [e for e in row.evaluated if e.temperature == temperature])
    ]
    references = {last.temperature: last for row, _, last in found if row is rows[0]}
    results = [
        ResultRow(
            campaign=row.standing.campaign,
            panel=panel_name(row.config),
            first=first,
            last=last,
            change=None if last is first else same_tasks(first.episodes, last.episodes),
            against=None if row is rows[0] else _against(rows[0], references.get(last.temperature), row, last),
        )
        for row, first, last in found
    ]
    adjusted = iter(holm([row.against.p_value for row in results if row.against]))
    return [
        replace(row, against=replace(row.against, adjusted_p=next(adjusted))) if row.against else row for row in results
    ]


def charts(rows: Sequence[CampaignRow]) -> list[tuple[str, Chart]]:
    """A chart for each temperature that was evaluated, with the training rollouts of those campaigns, and of those that
    were not evaluated at all: one colour a campaign."""
    temperatures = sorted({e.temperature for row in rows for e in row.evaluated})
    shift = min(4.0, 16 / len(rows))
    found = []
    for temperature in temperatures or [None]:
        series = []
        for number, row in enumerate(rows):
            at = {e.temperature for e in row.evaluated}
            if at and temperature not in at:
                continue
            name, colour = row.standing.campaign, _colour(number)
            training = [
                replace(p, low=p.value, high=p.value) for p in summary.training_points(row.commits, f"{name}, ")
            ]
            evaluated = [] if temperature is None else list(row.evaluated)
            points = summary.evaluation_points(evaluated, temperature or 0.0, f"{name}, ")
            series.append(Series(name, colour, training, dashed=True))
            series.append(Series(name, colour, points, shift=round(shift * number, 1)))
        title = "training rollouts" if temperature is None else f"temperature {temperature:g}"
        found.append((title, Chart([one for one in series if one.points], 940, 300, 1.0, LARGE_MARGINS)))
    return [(title, chart) for title, chart in found if chart.series]


def _row(store: CampaignStore, chain: list[Manifest], folder: Path) -> CampaignRow:
    page = pages_folder(store, None) / CAMPAIGN_PAGE
    return CampaignRow(
        standing=standing_of(store, chain),
        config=read_config(store),
        start=weights_hash(chain[0].policy) if chain else None,
        commits=summary.commit_rows(store, chain),
        evaluated=evaluations(store, chain),
        page=quote(os.path.relpath(page, folder)) if page.is_file() else None,
    )


def _against(
    reference: CampaignRow, reference_last: Evaluated | None, row: CampaignRow, last: Evaluated
) -> PairedDifference | None:
    """The difference over tasks that both played in worlds of the same settings; None where they are not the same."""
    if reference_last is None or reference_last.split != last.split:
        return None
    if _world(reference.config) != _world(row.config):
        return None
    wins = wins_of_same_tasks(last.episodes, reference_last.episodes)
    return difference(*(np.array([one]) for one in wins)) if wins and wins[0] else None


def _world(config: dict[str, Any]) -> dict[str, Any]:
    """The settings of what is evaluated: names of tasks alone do not tell one environment from another."""
    return {name: value for name, value in config["environment"].items() if name != "train_split"}


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]
