"""The audit pages of a campaign: static, each whole in itself, readable without a network."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.reports.audit import summary
from flows.reports.audit.data import IterationData, iteration_data
from flows.reports.audit.metrics import definition_of
from flows.reports.audit.tokens import stored_tokenizer
from flows.reports.chains import Evaluated, evaluations, read_tables
from flows.reports.formatting import interval, percent, score_text, with_interval
from flows.reports.skills import NEWEST, effects_of, first_extracted
from flows.reports.study_tables import tests
from infra.manifest import Manifest
from infra.objects import put
from infra.store import CampaignStore, key_of, location, read_config
from opid_core.errors import DataError
from opid_core.evaluation import SuccessRate, panel_name
from opid_core.skills.effects import effect_rows

if TYPE_CHECKING:
    from jinja2 import Environment

CAMPAIGN_PAGE = "index.html"
EFFECTS_SHOWN = 500
"""Skills in the campaign's page: those that gave most."""
TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Commits:
    """What the campaign's page takes of each commit, which stays as it is."""

    rows: Sequence[summary.CommitRow] = ()
    evaluated: Sequence[Evaluated] = ()
    first_extracted: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """The iteration that each skill, by kind and text, was extracted in first."""


def read_commits(store: CampaignStore, chain: Sequence[Manifest], known: Commits = Commits()) -> Commits:
    """Of all commits of `chain`; of its first ones it is `known`, and they are not read again."""
    new = chain[len(known.rows) :]
    return Commits(
        rows=summary.commit_rows(store, chain, known.rows),
        evaluated=[*known.evaluated, *evaluations(store, new)],
        first_extracted=first_extracted(store, new, known.first_extracted),
    )


def page_of(iteration: int) -> str:
    """File name of an iteration's page."""
    return f"iteration-{key_of(iteration)}.html"


def write_pages(
    store: CampaignStore,
    chain: Sequence[Manifest],
    iterations: Sequence[int],
    folder: Path,
    *,
    reload_s: int | None = None,
    commits: Commits | None = None,
) -> list[Path]:
    """Write the pages of `iterations` and the campaign's into `folder`; returns the files, the campaign's last.
    `commits`: what was read of `chain` (None: it is read here).

    The campaign's page links to all pages of iterations that lie in `folder`; with `reload_s` a browser that has it
    open reads it again every so many seconds. Who reads a page meanwhile finds the old one or the new one whole. Raises
    DataError that names a table or manifest which cannot be read.
    """
    commits = commits or read_commits(store, chain)
    rows = commits.rows
    paths = [folder / page_of(iteration) for iteration in iterations]
    for iteration, path in zip(iterations, paths, strict=True):
        data = read_iteration(store, chain[iteration], summary.texts_before(store, chain, iteration))
        write_page(path, iteration_page(store, rows[iteration], data))
    linked = {row.name: page_of(row.manifest.iteration) for row in rows[1:]}
    present = {name: page for name, page in linked.items() if (folder / page).is_file()}
    paths.append(folder / CAMPAIGN_PAGE)
    write_page(paths[-1], campaign_page(store, chain, commits, present, reload_s))
    return paths


def read_iteration(store: CampaignStore, manifest: Manifest, before: set[str]) -> IterationData:
    """The data of an iteration's page; `before` holds the skill texts of the iteration before."""
    tokenizer = stored_tokenizer(store, manifest)
    return iteration_data(store.campaign, manifest.iteration, read_tables(store, manifest), before, tokenizer)


def campaign_page(
    store: CampaignStore,
    chain: Sequence[Manifest],
    commits: Commits,
    pages: dict[str, str],
    reload_s: int | None,
) -> str:
    """The campaign's page as HTML; `pages` names the page of each iteration that has one, `reload_s` as in
    `write_pages`."""
    if not chain:
        raise DataError(f"{location(store)}: nothing is committed yet: there is nothing to audit")
    config, effects = read_config(store), effects_of(store, chain)
    rows, evaluated = commits.rows, commits.evaluated
    where = ["--root", store.root, *(["--endpoint-url", store.endpoint_url] if store.endpoint_url else [])]
    return render(
        "campaign.html.j2",
        script=page_script(),
        campaign=store.campaign,
        location=location(store),
        command=shlex.join(["opid", "audit", store.campaign, *where, "--iteration", "all"]),
        config=config,
        rows=rows,
        pages=pages,
        chart=summary.success_chart(rows, evaluated, panel_name(config)),
        by_type=summary.before_and_after(evaluated),
        small=summary.small_charts(rows),
        cost=summary.total_cost([row.analyzer_cost for row in rows]),
        effects=len(effects),
        has_placebos=any(effect.placebo_delta is not None for effect in effects),
        shown=EFFECTS_SHOWN,
        newest=NEWEST,
        reload_s=reload_s,
        data=packed(
            {
                "added": summary.added_last(store, chain),
                "effects": [
                    {**row, "first": commits.first_extracted[row["kind"], row["text"]]}
                    for row in effect_rows(effects)[:EFFECTS_SHOWN]
                ],
            }
        ),
    )


def iteration_page(store: CampaignStore, row: summary.CommitRow, data: IterationData) -> str:
    """An iteration's page as HTML."""
    return render(
        "iteration.html.j2",
        script=page_script(),
        campaign=store.campaign,
        location=location(store),
        campaign_page=CAMPAIGN_PAGE,
        row=row,
        texts=len({skill["text"] for skill in data.index["skills"] if skill["text"]}),
        scale=data.index["scale"],
        metrics=data.metrics,
        index=packed(data.index),
        chunks=[packed(chunk) for chunk in data.chunks],
    )


def packed(value: Any) -> str:
    """`value` as JSON, gzipped, in base64: letters, digits, `+`, `/` and `=` only. The same for the same value."""
    # ASCII: a lone surrogate, which UTF-8 cannot hold, stays what it is as an escape
    data = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode("ascii")
    return base64.b64encode(gzip.compress(data, 9, mtime=0)).decode()


def content_hash(text: str) -> str:
    """The source expression that lets a Content-Security-Policy run exactly this inline script or style."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def visible(value: Any) -> str:
    """`value` as one line of ASCII: JSON, in which control characters and line ends can be seen."""
    return json.dumps(value, default=str)


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

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": partial(percent, missing="–"),
        "visible": visible,
        "interval": summary.share_text,
        "bounds": lambda share: interval(share.low, share.high),
        "rate": _rate,
        "tests": tests,
        "score": score_text,
        "cost": _cost,
        "definition": definition_of,
    }
    return environment


def _rate(success: SuccessRate) -> str:
    return with_interval(success.micro, success.low, success.high)


def _cost(value: float | None) -> str:
    return "–" if value is None else f"{value:,.4f}"


def page_script() -> str:
    """The script of the audit's pages."""
    return _read("common.js") + _read("page.js")


def _read(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


def write_page(path: Path, html: str) -> None:
    """Write a page whole or not at all, in a folder that is made where it is missing."""
    put(path, html.encode())
