"""`opid verify`: read every file of a campaign again and compare it with its hash."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from infra.manifest import FileRecord
from infra.store import find_campaign, location, manifests, objects, standing, verify


def show_verify(root: str | Path, campaign: str, endpoint_url: str | None, console: Console) -> None:
    """Re-hash the whole chain and print how much there was. Raises DataError that names the first bad object."""
    store = find_campaign(root, campaign, endpoint_url)
    chain = manifests(store)
    total = sum(record.size for record in standing(store, chain))
    columns = (TextColumn("verify"), BarColumn(), DownloadColumn(), TextColumn("left"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        bar = bars.add_task("", total=total)

        def on_file(record: FileRecord) -> None:
            bars.advance(bar, record.size)

        files = verify(store, on_file, chain=chain)
    iterations = max(0, len(chain) - 1)
    gone = sum(len(objects(manifest)) for manifest in chain) - files
    given_up = f" {gone} files of old optimizer states were given up (storage.optimizer_states)." if gone else ""
    console.print(
        f"{location(store)}: whole: {files} files, {decimal(total)}, {iterations} iterations.{given_up}",
        soft_wrap=True,
    )
