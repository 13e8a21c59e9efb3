"""`opid audit`: pages to look at, tables to query, or what two commits differ in."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.common import Endpoint, Root, app, console
from opid_core.errors import ConfigError

FORMATS = ("html", "json", "csv", "parquet")


@app.command()
def audit(
    campaigns: Annotated[
        list[str],
        typer.Argument(metavar="CAMPAIGN [OTHER]", help="Name of the campaign, or NAME@ITERATION; two: compare."),
    ],
    root: Root = "runs",
    endpoint_url: Endpoint = None,
    iterations: Annotated[
        list[str] | None,
        typer.Option("--iteration", help="Whose pages or rows: a number, 'last' or 'all'; repeat for more."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write; default: ROOT/CAMPAIGN/audit.")] = None,
    kind: Annotated[str, typer.Option("--format", help="html, or tables as json, csv or parquet.")] = "html",
) -> None:
    """Look at a campaign: one static page for it, one for each asked iteration; or tables; or compare two.

    Example: [bold]opid audit quickstart --iteration all[/], [bold]opid audit quickstart@1 quickstart@4[/]
    """
    from flows.reports.chains import parse_commit
    from flows.reports.formatting import say

    if kind not in FORMATS:
        raise ConfigError(f"--format: {kind!r}: must be one of {', '.join(FORMATS)}")
    if len(campaigns) > 2:
        raise ConfigError(f"audit: {len(campaigns)} campaigns given: one is audited, two are compared")
    if len(campaigns) == 2:
        if iterations or out is not None or kind != "html":
            raise ConfigError("audit A B compares two and takes no --iteration, --out or --format; write A@ITERATION")
        from flows.reports.diff import read_difference, show_difference

        show_difference(read_difference(root, endpoint_url, *campaigns), console)
        return
    name, iteration = parse_commit(campaigns[0])
    if iteration is not None and iterations:
        raise ConfigError(f"audit: {campaigns[0]} names its iteration already: leave out --iteration")
    chosen = iterations or ["last"] if iteration is None else [iteration]
    from flows.reports.audit import write_audit

    written = write_audit(root, endpoint_url, name, chosen, out, kind)
    for path in written:
        say(console, str(path))
    if kind == "html":
        say(console, f"Open {written[-1]} in a browser.")
