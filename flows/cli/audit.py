"""`opid audit`: pages to look at, tables to query, or what two commits differ in."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from flows.cli.common import Endpoint, Root, app, console, exit_on_interrupt
from opid_core.errors import ConfigError

FORMATS = ("html", "json", "csv", "parquet")


@app.command()
def audit(
    campaigns: Annotated[
        list[str] | None,
        typer.Argument(metavar="CAMPAIGN", help="Name of the campaign, or NAME@ITERATION; two: compare."),
    ] = None,
    root: Root = "runs",
    endpoint_url: Endpoint = None,
    iterations: Annotated[
        list[str] | None,
        typer.Option("--iteration", help="Whose pages or rows: a number, 'last' or 'all'; repeat for more."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write; default: ROOT/CAMPAIGN/audit, with --overview ROOT.")
    ] = None,
    kind: Annotated[str, typer.Option("--format", help="html, or tables as json, csv or parquet.")] = "html",
    follows: Annotated[
        bool, typer.Option("--follow", help="Write the pages again after each commit, until the campaign has ended.")
    ] = False,
    overview: Annotated[
        bool, typer.Option("--overview", help="One page over the named campaigns; none named: all of the root.")
    ] = False,
) -> None:
    """Look at a campaign: one static page for it, one for each asked iteration; or tables; or compare two.

    Example: [bold]opid audit quickstart --follow[/], [bold]opid audit quickstart@1 quickstart@4[/],
    [bold]opid audit --overview[/]
    """
    from flows.reports.formatting import say

    if kind not in FORMATS:
        raise ConfigError(f"--format: {kind!r}: must be one of {', '.join(FORMATS)}")
    names, asked = campaigns or [], iterations or []
    _check(names, asked, out, kind, follows=follows, overview=overview)
    if overview:
        from flows.reports.audit.overview import write_overview

        written = [write_overview(root, endpoint_url, names, out, partial(say, console))]
    elif len(names) == 2:
        from flows.reports.diff import read_difference, show_difference

        show_difference(read_difference(root, endpoint_url, *names), console)
        return
    elif follows:
        from flows.reports.audit.follow import follow

        with exit_on_interrupt():
            written = [follow(root, endpoint_url, names[0], out, partial(say, console), every="all" in asked)]
    else:
        from flows.reports.audit import write_audit
        from flows.reports.chains import parse_commit

        name, iteration = parse_commit(names[0])
        if iteration is not None and asked:
            raise ConfigError(f"audit: {names[0]} names its iteration already: leave out --iteration")
        chosen = asked or ["last"] if iteration is None else [iteration]
        written = write_audit(root, endpoint_url, name, chosen, out, kind)
    for path in written:
        say(console, str(path))
    if kind == "html":
        say(console, f"Open {written[-1]} in a browser.")


def _check(
    names: Sequence[str], iterations: Sequence[str], out: Path | None, kind: str, *, follows: bool, overview: bool
) -> None:
    """Raise ConfigError for arguments that do not go together."""
    is_commit = any("@" in name for name in names)
    if overview:
        if follows or iterations or is_commit or kind != "html":
            raise ConfigError("audit --overview takes names of campaigns, --root and --out alone")
    elif not names:
        raise ConfigError("audit: name a campaign, or add --overview for one page over all of the root")
    elif follows:
        if len(names) > 1 or is_commit or kind != "html" or not {*iterations} <= {"last", "all"}:
            raise ConfigError(
                "audit --follow takes the name of one campaign, --iteration last or all, --root and --out"
            )
    elif len(names) > 2:
        raise ConfigError(
            f"audit: {len(names)} campaigns given: one is audited, two are compared; --overview makes one page of all"
        )
    elif len(names) == 2 and (iterations or out is not None or kind != "html"):
        raise ConfigError("audit A B compares two and takes no --iteration, --out or --format; write A@ITERATION")
