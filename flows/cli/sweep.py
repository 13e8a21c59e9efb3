"""`opid sweep`: what killed or losing attempts left in a campaign's store, and its removal."""

from __future__ import annotations

from collections import defaultdict
from typing import Annotated

import typer

from flows.cli.common import CampaignName, Endpoint, Root, app, console


@app.command()
def sweep(
    campaign: CampaignName,
    root: Root = "runs",
    endpoint_url: Endpoint = None,
    older_than_h: Annotated[float, typer.Option(min=0, help="Only what has not changed for so many hours.")] = 24.0,
    delete: Annotated[bool, typer.Option("--delete", help="Delete it; without this it is only listed.")] = False,
) -> None:
    """List, or delete, what interrupted runs left behind: files that no commit names and no resumed run would use.

    Example: [bold]opid sweep quickstart --older-than-h 48 --delete[/]
    """
    from rich.filesize import decimal
    from rich.table import Table

    from flows.reports.formatting import say
    from infra.store import delete_orphans, find_campaign, location, orphans

    store = find_campaign(root, campaign, endpoint_url)
    files = orphans(store, older_than_h * 3600)
    if not files:
        say(console, f"{location(store)}: no orphans older than {older_than_h:g} hours.")
        return
    sizes: dict[str, list[int]] = defaultdict(list)
    for orphan in files:
        sizes["/".join(orphan.path.split("/")[:3])].append(orphan.size)
    table = Table("orphan attempt", "files", "size")
    for folder, of_files in sizes.items():
        table.add_row(folder, str(len(of_files)), decimal(sum(of_files)))
    console.print(table)
    total = f"{len(files)} files, {decimal(sum(orphan.size for orphan in files))}"
    if delete:
        delete_orphans(store, files)
        say(console, f"{location(store)}: deleted {total}.")
    else:
        say(console, f"{location(store)}: {total} to delete. Dry run: nothing was deleted.")
