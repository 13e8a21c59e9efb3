"""`opid verify`: read every file of a campaign again and compare it with its hash."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flows.cli.common import CampaignName, Endpoint, Root, app, console

if TYPE_CHECKING:
    from infra.manifest import FileRecord


@app.command()
def verify(campaign: CampaignName, root: Root = "runs", endpoint_url: Endpoint = None) -> None:
    """Re-hash the config and every file that the campaign's manifests name; stops at the first that is missing or
    damaged.

    Example: [bold]opid verify quickstart[/]
    """
    from rich.filesize import decimal
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    from flows.reports.chains import read_chain
    from flows.reports.formatting import quantity, say
    from infra import store as stores

    store, chain = read_chain(root, campaign, endpoint_url)
    stores.check_config(store, chain)
    if not chain:
        say(console, f"{stores.location(store)}: nothing is committed yet.")
        return
    total = sum(record.size for record in stores.standing(store, chain))
    columns = (TextColumn("verify"), BarColumn(), DownloadColumn(), TextColumn("left"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("", total=total)

        def on_file(record: FileRecord) -> None:
            progress.advance(bar, record.size)

        files = stores.verify(store, on_file, chain=chain)
    deleted = sum(len(stores.files_of(manifest)) for manifest in chain) - files
    gone = quantity(deleted, "file")
    note = f" Deleted: {gone} of old optimizer states (storage.optimizer_states)." if deleted else ""
    amounts = f"{quantity(files, 'file')}, {decimal(total)}, {quantity(len(chain) - 1, 'iteration')}"
    say(console, f"{stores.location(store)}: whole: {amounts}.{note}")
