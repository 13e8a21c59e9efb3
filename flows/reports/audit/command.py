"""`opid audit`: pages to look at, tables to query, or the difference of two."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

from rich.console import Console

from flows.reports.chains import parse_side
from infra.store import find_campaign, local_folder, manifests
from opid_core.errors import ConfigError

Format = Literal["html", "json", "csv", "parquet"]
LAST, ALL = "last", "all"


def audit(
    root: str,
    endpoint_url: str | None,
    campaigns: Sequence[str],
    asked: Sequence[str],
    out: Path | None,
    kind: str,
    console: Console,
) -> None:
    """Audit one campaign (`NAME` or `NAME@ITERATION`), or compare two.

    Raises ConfigError for an unknown campaign or iteration, and for options that do not go together.
    """
    if kind not in get_args(Format):
        raise ConfigError(f"--format: {kind!r}: must be one of {', '.join(get_args(Format))}")
    if len(campaigns) > 2:
        raise ConfigError(f"audit: {len(campaigns)} campaigns given: one is audited, two are compared")
    if len(campaigns) == 2:
        if asked or out is not None or kind != "html":
            raise ConfigError("audit A B compares two and takes no --iteration, --out or --format; write A@ITERATION")
        from flows.reports.diff import show_difference

        show_difference(root, endpoint_url, campaigns[0], campaigns[1], console)
        return
    name, iteration = parse_side(campaigns[0])
    if iteration is not None and asked:
        raise ConfigError(f"audit: {campaigns[0]} names its iteration already: leave out --iteration")
    chosen = list(asked) or [LAST] if iteration is None else [iteration]
    write_audit(root, endpoint_url, name, chosen, out, kind, console)


def write_audit(
    root: str,
    endpoint_url: str | None,
    campaign: str,
    asked: Sequence[str],
    out: Path | None,
    kind: str,
    console: Console,
) -> None:
    """Write the pages or tables of `campaign` into `out` (default: `audit` beside its report); print where they lie."""
    store = find_campaign(root, campaign, endpoint_url)
    chain = manifests(store)
    if not chain:
        raise ConfigError(f"campaign: nothing of {campaign!r} is committed yet: there is nothing to audit")
    iterations = asked_iterations(asked, len(chain) - 1)
    folder = local_folder(store) / "audit" if out is None else out
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--out: {folder} is a file; it must be a folder, or nothing yet")
    if kind == "html":
        from flows.reports.audit.pages import write_pages

        page = write_pages(store, chain, iterations, folder, lambda path: _say(console, f"{path}"))
        _say(console, f"Open {page} in a browser.")
        return
    if not iterations:
        raise ConfigError(f"campaign: no iteration of {campaign!r} is committed yet: it has no tables but evaluations")
    from flows.reports.audit.tables import write_tables

    for path in write_tables(store, chain, iterations, folder, kind):  # pyright: ignore[reportArgumentType]
        _say(console, f"{path}")


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def asked_iterations(asked: Sequence[str], committed: int) -> list[int]:
    """The numbers that `asked` (numbers, `last`, `all`) mean in a campaign of `committed` iterations, sorted.

    Raises ConfigError that names what there is.
    """
    found: set[int] = set()
    for text in asked:
        if text == ALL:
            found |= set(range(committed))
        elif text == LAST:
            found |= {committed - 1} if committed else set()
        elif text.isdecimal() and int(text) < committed:
            found.add(int(text))
        else:
            there = f"0 to {committed - 1}" if committed else "none"
            raise ConfigError(f"--iteration: {text!r}: must be {ALL}, {LAST} or a committed iteration ({there})")
    return sorted(found)
