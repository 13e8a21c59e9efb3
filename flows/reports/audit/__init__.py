"""The audit of a campaign: pages to look at, or flat tables to query."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from flows.output import make_folder
from flows.reports.chains import read_chain
from infra.manifest import uncollected
from infra.store import CampaignStore, local_folder
from opid_core.errors import ConfigError


@uncollected()
def write_audit(
    root: str,
    endpoint_url: str | None,
    campaign: str,
    iterations: Sequence[str],
    out: Path | None,
    kind: Literal["html", "json", "csv", "parquet"],
) -> list[Path]:
    """Write the pages or tables of `campaign` into `out` (default: `audit` beside its report); returns the files, of
    pages the campaign's own last. `iterations` holds numbers, `last` or `all`.

    Raises ConfigError for an unknown campaign or iteration, and where there is nothing to show.
    """
    store, chain = read_chain(root, campaign, endpoint_url)
    if not chain:
        raise ConfigError(f"campaign: nothing of {campaign!r} is committed yet: there is nothing to audit")
    numbers = iteration_numbers(iterations, len(chain) - 1)
    folder = pages_folder(store, out)
    if kind != "html" and not numbers:
        raise ConfigError(f"campaign: no iteration of {campaign!r} is committed yet: it has no tables but evaluations")
    make_folder(folder)
    if kind == "html":
        from flows.reports.audit.pages import write_pages

        return write_pages(store, chain, numbers, folder)
    from flows.reports.audit.tables import write_tables

    return write_tables(store, chain, numbers, folder, kind)


def pages_folder(store: CampaignStore, out: Path | None) -> Path:
    """Where the pages of a campaign are written: `out`, or `audit` beside its report. Raises ConfigError for a file."""
    folder = local_folder(store, "audit") if out is None else out
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--out: {folder} is a file; it must be a folder, or nothing yet")
    return folder


def iteration_numbers(asked: Sequence[str], committed: int) -> list[int]:
    """The numbers that `asked` (numbers, `last`, `all`) mean in a campaign of `committed` iterations, sorted.

    Raises ConfigError that names what there is.
    """
    numbers: set[int] = set()
    for text in asked:
        if text in ("all", "last"):
            numbers |= set(range(1, committed + 1)[-1 if text == "last" else 0 :])
        elif text.isdecimal() and 1 <= int(text) <= committed:
            numbers.add(int(text))
        else:
            known = f"1 to {committed}" if committed else "none"
            raise ConfigError(f"--iteration: {text!r}: must be all, last or a committed iteration ({known})")
    return sorted(numbers)
