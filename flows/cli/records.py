"""Commands that look at what campaigns left, and look after it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.common import Endpoint, Root, app, console


@app.command()
def status(
    campaign: Annotated[str, typer.Argument(help="Name of the campaign.")],
    root: Root = "runs",
    endpoint_url: Endpoint = None,
    last: Annotated[int, typer.Option(min=1, help="How many of the newest iterations to show.")] = 10,
) -> None:
    """What is committed, who works on it, what stopped it: iterations, success, gates, overhead, the newest policy.

    Example: [bold]opid status quickstart[/]
    """
    from flows.cli.status import show_status

    show_status(root, campaign, endpoint_url, last, console)


@app.command("audit")
def audit_command(
    campaigns: Annotated[
        list[str],
        typer.Argument(metavar="CAMPAIGN [OTHER]", help="Name of the campaign, or NAME@ITERATION; two: compare."),
    ],
    root: Root = "runs",
    endpoint_url: Endpoint = None,
    iteration: Annotated[
        list[str] | None, typer.Option(help="Whose pages or rows: a number, 'last' or 'all'; repeat for more.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write; default: ROOT/CAMPAIGN/audit.")] = None,
    kind: Annotated[str, typer.Option("--format", help="html, or tables as json, csv or parquet.")] = "html",
) -> None:
    """Look at a campaign: one static page for it, one for each asked iteration; or tables; or compare two.

    Example: [bold]opid audit quickstart --iteration all[/], [bold]opid audit quickstart@0 quickstart@11[/]
    """
    from flows.reports.audit.command import audit

    audit(root, endpoint_url, campaigns, iteration or [], out, kind, console)


@app.command("trace")
def trace_command(
    skill_id: Annotated[str, typer.Argument(help="Id of the skill, such as 000003-0004-02/step3.")],
    root: Root = "runs",
    endpoint_url: Endpoint = None,
    campaign: Annotated[str | None, typer.Option(help="Whose skill; default: the campaign that has it.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of text.")] = False,
) -> None:
    """A skill's whole life: trajectory, analysis, routing, what it did to which tokens, the update that used it.

    Example: [bold]opid trace 000003-0004-02/step3 --campaign quickstart[/]
    """
    from flows.reports.trace import show_trace

    show_trace(root, endpoint_url, campaign, skill_id, as_json, console)


@app.command("export")
def export_command(
    campaign: Annotated[str, typer.Argument(help="Name of the campaign.")],
    out: Annotated[Path, typer.Option(help="Folder to write; must not exist.")],
    iteration: Annotated[str | None, typer.Option(help="A number or 'start'; default: the newest.")] = None,
    root: Root = "runs",
    endpoint_url: Endpoint = None,
) -> None:
    """An iteration's tables as JSONL and the policy that it made as an HF folder, in a new folder.

    Example: [bold]opid export quickstart --iteration 3 --out exported[/]
    """
    from flows.cli.export import show_export

    show_export(root, campaign, endpoint_url, iteration, out, console)


@app.command("reproduce")
def reproduce_command(
    campaign: Annotated[str, typer.Argument(help="Name of the campaign; it is only read.")],
    iteration: Annotated[int, typer.Option(min=0, help="The committed iteration to run again.")],
    root: Root = "runs",
    endpoint_url: Endpoint = None,
) -> None:
    """Run a committed iteration again from what stood before it and compare every table and the weights.

    Exit code 1 where anything differs. Example: [bold]opid reproduce quickstart --iteration 3[/]
    """
    from flows.cli.reproduce import show_reproduce

    if not show_reproduce(root, campaign, endpoint_url, iteration, console):
        raise typer.Exit(1)


@app.command("verify")
def verify_command(
    campaign: Annotated[str, typer.Argument(help="Name of the campaign.")],
    root: Root = "runs",
    endpoint_url: Endpoint = None,
) -> None:
    """Re-hash every file that the campaign's manifests name; stops at the first that is missing or damaged.

    Example: [bold]opid verify quickstart[/]
    """
    from flows.cli.verify import show_verify

    show_verify(root, campaign, endpoint_url, console)


@app.command("sweep")
def sweep_command(
    campaign: Annotated[str, typer.Argument(help="Name of the campaign.")],
    root: Root = "runs",
    endpoint_url: Endpoint = None,
    older_than_h: Annotated[float, typer.Option(min=0, help="Only what has not changed for so many hours.")] = 24.0,
    delete: Annotated[bool, typer.Option("--delete", help="Delete it; without this it is only listed.")] = False,
) -> None:
    """List, or delete, what interrupted runs left behind: files that no commit names and no resumed run would use.

    Example: [bold]opid sweep quickstart --older-than-h 48 --delete[/]
    """
    from flows.cli.sweep import show_sweep

    show_sweep(root, campaign, endpoint_url, older_than_h * 3600, delete, console)
