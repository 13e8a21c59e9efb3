"""`opid audit A B`: what two iterations, of one campaign or of two, differ in."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from flows.reports.chains import parse_side, place_of
from flows.reports.difference import Compared, Counted, Difference, EvaluationPair, Side, SkillTexts, difference
from flows.reports.printing import plain
from infra.store import find_campaign, manifests, read_config, read_table


def read_difference(root: str, endpoint_url: str | None, first: str, second: str) -> Difference:
    """Compare `CAMPAIGN` or `CAMPAIGN@ITERATION` (default: the newest) with another of the same root.

    Raises ConfigError for an unknown campaign or iteration, DataError for a damaged table.
    """
    return difference(_read_side(root, endpoint_url, first), _read_side(root, endpoint_url, second))


def show_difference(root: str, endpoint_url: str | None, first: str, second: str, console: Console) -> None:
    """Print what `read_difference` finds."""
    found = read_difference(root, endpoint_url, first, second)
    console.print(f"[bold]{found.first}[/] and [bold]{found.second}[/]", highlight=False, soft_wrap=True)
    if found.config:
        console.print(
            _table("Config", ["key"], found, [[c.key, _json(c.first), _json(c.second)] for c in found.config])
        )
    else:
        console.print("Config: the same.")
    for title, rows in (("Outcomes", found.outcomes), ("Routes", found.routes)):
        console.print(_table(title, [""], found, [[row.name, *_counts(row)] for row in rows]))
    _print_skills(found, console)
    _print_evaluations(found, console)
    shown = [row for row in found.metrics if not row.name.endswith("_s")]
    columns = ["difference"]
    console.print(_table("Metrics", ["name"], found, [[row.name, *_numbers(row)] for row in shown], columns))


def _read_side(root: str, endpoint_url: str | None, text: str) -> Side:
    campaign, iteration = parse_side(text)
    store = find_campaign(root, campaign, endpoint_url)
    chain = manifests(store)
    place = place_of(store, chain, iteration)
    records = dict(chain[place].tables)
    for manifest in reversed(chain[: place + 1]):
        if "evaluations" in manifest.tables:
            records["evaluations"] = manifest.tables["evaluations"]
            break
    tables = {name: read_table(store, record) for name, record in records.items()}
    return Side(f"{campaign}@{chain[place].iteration}", read_config(store), tables)


def _print_skills(found: Difference, console: Console) -> None:
    rows = [
        [f"{row.kind}, {row.outcome}", str(row.both), str(row.only_first), str(row.only_second)] for row in found.skills
    ]
    table = Table("kind, outcome", "in both", f"only {found.first}", f"only {found.second}", title="Skill texts")
    for row in rows:
        table.add_row(*map(plain, row))
    console.print(table)
    for row in found.skills:
        for name, examples in _examples(found, row):
            for text in examples:
                console.print(plain(f"only {name}: {row.kind}, {row.outcome}: {text}"), soft_wrap=True)


def _examples(found: Difference, row: SkillTexts) -> list[tuple[str, tuple[str, ...]]]:
    return [(found.first, row.examples_first), (found.second, row.examples_second)]


def _print_evaluations(found: Difference, console: Console) -> None:
    if not found.evaluations:
        console.print("Evaluations: none at a temperature that both have.")
    for pair in found.evaluations:
        rows = [
            ["updates of the policy", str(pair.first_version), str(pair.second_version)],
            ["episodes", str(pair.first.episodes), str(pair.second.episodes)],
            ["success (micro)", f"{pair.first.micro:.1%}", f"{pair.second.micro:.1%}"],
            ["95% interval", *(f"{s.low:.1%} to {s.high:.1%}" for s in (pair.first, pair.second))],
            ["success (macro)", f"{pair.first.macro:.1%}", f"{pair.second.macro:.1%}"],
        ]
        console.print(_table(f"Evaluation, temperature {pair.temperature:g}", [""], found, rows))
        console.print(_verdict(found, pair), soft_wrap=True, highlight=False)


def _verdict(found: Difference, pair: EvaluationPair) -> str:
    if pair.paired is None:
        return "The panels are not the same tasks: no paired comparison."
    p = pair.paired
    return (
        f"The same tasks: {p.both} won by both alike, {p.first_more} by {found.first} alone or more often, "
        f"{p.second_more} by {found.second}, {p.neither} by neither; exact sign test p = {p.p_value:.3g}."
    )


def _table(
    title: str, left: list[str], found: Difference, rows: Sequence[Sequence[str]], right: Sequence[str] = ()
) -> Table:
    table = Table(*left, found.first, found.second, *right, title=title)
    for row in rows:
        table.add_row(*map(plain, row))
    return table


def _counts(row: Counted) -> list[str]:
    return [f"{row.first} ({row.first_share:.1%})", f"{row.second} ({row.second_share:.1%})"]


def _numbers(row: Compared) -> list[str]:
    first, second = ("" if value is None else f"{value:.5g}" for value in (row.first, row.second))
    return [first, second, "" if row.difference is None else f"{row.difference:+.5g}"]


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
