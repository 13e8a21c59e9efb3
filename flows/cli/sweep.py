"""`opid sweep`: what killed or losing attempts left in a campaign's store, and its removal."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from infra.store import find_campaign, location
from infra.sweep import delete, orphans


def show_sweep(
    root: str | Path,
    campaign: str,
    endpoint_url: str | None,
    older_than_s: float,
    delete_them: bool,
    console: Console,
) -> None:
    """Show the orphans older than `older_than_s` seconds by attempt, and delete them if `delete_them`.

    Raises ConfigError for an unknown campaign, DataError for a damaged one, in which nothing is deleted.
    """
    store = find_campaign(root, campaign, endpoint_url)
    found = orphans(store, older_than_s)
    if not found:
        console.print(f"{location(store)}: no orphans older than {older_than_s / 3600:g} hours.", soft_wrap=True)
        return
    sizes: dict[str, list[int]] = {}
    for orphan in found:
        sizes.setdefault("/".join(orphan.path.split("/")[:3]), []).append(orphan.size)
    table = Table("orphan attempt", "files", "size")
    for folder, each in sizes.items():
        table.add_row(folder, str(len(each)), decimal(sum(each)))
    console.print(table)
    total = f"{len(found)} files, {decimal(sum(orphan.size for orphan in found))}"
    if delete_them:
        delete(store, found)
        console.print(f"{location(store)}: deleted {total}.", soft_wrap=True)
    else:
        console.print(f"{location(store)}: {total} to delete. Dry run: nothing was deleted.", soft_wrap=True)
