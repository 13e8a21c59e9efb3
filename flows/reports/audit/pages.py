"""The audit pages of a campaign: static, each whole in itself, readable without a network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.reports.audit import summary
from flows.reports.audit.data import IterationData, iteration_data, read_tables
from flows.reports.audit.embed import content_hash, packed, visible
from flows.reports.audit.tokens import stored_tokenizer
from flows.reports.campaign import evaluations
from infra.manifest import START, Manifest
from infra.store import CampaignStore, key_of, location, read_config
from opid_core.errors import DataError

if TYPE_CHECKING:
    from jinja2 import Environment

CAMPAIGN_PAGE = "index.html"
TEMPLATES = Path(__file__).parent / "templates"


def page_of(iteration: int) -> str:
    """File name of an iteration's page."""
    return f"iteration-{key_of(iteration)}.html"


def write_pages(
    store: CampaignStore,
    chain: Sequence[Manifest],
    iterations: Sequence[int],
    folder: Path,
    on_page: Callable[[Path], None] = lambda path: None,
) -> Path:
    """Write the campaign's page and those of `iterations` into `folder`; returns the campaign's.

    The campaign's page links to all pages of iterations that lie in `folder`. Raises DataError that names a table or
    manifest which cannot be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = summary.rows(store, chain)
    new = summary.new_counts(rows)
    for iteration in iterations:
        path = folder / page_of(iteration)
        before = rows[iteration].texts  # chain[0] is the start: rows[k] is the row before iteration k
        data = read_iteration(store, chain[iteration + 1], set(before))
        _write(path, iteration_page(store, rows[iteration + 1], new[iteration + 1], data))
        on_page(path)
    linked = {row.name: page_of(int(row.name)) for row in rows if row.name != START}
    there = {name: page for name, page in linked.items() if (folder / page).is_file()}
    path = folder / CAMPAIGN_PAGE
    _write(path, campaign_page(store, chain, rows, there))
    on_page(path)
    return path


def read_iteration(store: CampaignStore, manifest: Manifest, before: set[str]) -> IterationData:
    """The data of an iteration's page; `before` holds the skill texts of the iteration before."""
    assert manifest.iteration != START
    tokenizer = stored_tokenizer(store, manifest)
    return iteration_data(store.campaign, manifest.iteration, read_tables(store, manifest), before, tokenizer)


def campaign_page(
    store: CampaignStore, chain: Sequence[Manifest], rows: Sequence[summary.Row], pages: dict[str, str]
) -> str:
    """The campaign's page as HTML; `pages` names the page of each iteration that has one."""
    if not chain:
        raise DataError(f"{location(store)}: nothing is committed yet: there is nothing to audit")
    new = summary.new_counts(rows)
    return render(
        "campaign.html.j2",
        script=_read("page.js"),
        campaign=store.campaign,
        place=location(store),
        config=read_config(store),
        rows=list(zip(rows, new, strict=True)),
        pages=pages,
        chart=summary.success_chart(rows, evaluations(store, list(chain))),
        small=summary.small_charts(rows, new),
        cost=summary.total_cost([row.analyzer_cost for row in rows]),
        data=packed({"added": summary.added_last(store, chain, rows)}),
    )


def iteration_page(store: CampaignStore, row: summary.Row, new: int, data: IterationData) -> str:
    """An iteration's page as HTML."""
    return render(
        "iteration.html.j2",
        script=_read("page.js"),
        campaign=store.campaign,
        place=location(store),
        campaign_page=CAMPAIGN_PAGE,
        row=row,
        new=new,
        scale=data.index["scale"],
        index=packed(data.index),
        chunks=[packed(chunk) for chunk in data.chunks],
    )


def render(template: str, script: str = "", images: str = "'none'", **values: Any) -> str:
    """A template as a page that lets nothing run but `script`, and no images in but from the source `images`."""
    from markupsafe import Markup

    style = _read("page.css")
    policy = (
        f"default-src 'none'; script-src {content_hash(script)}; style-src {content_hash(style)}; img-src {images}; "
        "base-uri 'none'; form-action 'none'"
    )
    return (
        _environment()
        .get_template(template)
        .render(style=Markup(style), script=Markup(script), policy=policy, **values)
    )


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"percent": _percent, "visible": visible, "interval": summary.interval, "cost": _cost}
    return made


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _cost(value: float | None) -> str:
    return "–" if value is None else f"{value:,.4f}"


def _read(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


def _write(path: Path, html: str) -> None:
    path.write_text(html, encoding="utf-8", newline="\n")
