"""`opid trace`; `flows.reports.trace` reads what a skill did."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from typing import Annotated

import typer

from flows.cli.common import Endpoint, Root, app, console, error_console


@app.command()
def trace(
    skill_id: Annotated[
        str,
        typer.Argument(
            metavar="SKILL_ID", help="Id of the skill, such as 000003-0004-02/episode or 000003-0004-02/step3."
        ),
    ],
    root: Root = "runs",
    endpoint_url: Endpoint = None,
    campaign: Annotated[str | None, typer.Option(help="Whose skill; default: the campaign that has it.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of text.")] = False,
) -> None:
    """A skill's whole life: trajectory, analysis, routing, what it did to which tokens, the update that used it.

    Example: [bold]opid trace 000003-0004-02/episode --campaign quickstart[/]
    """
    from flows.reports.formatting import say
    from flows.reports.trace import describe, trace_skill

    traced = trace_skill(root, endpoint_url, campaign, skill_id, partial(say, error_console))
    if as_json:
        console.print(json.dumps(asdict(traced), indent=2), highlight=False, soft_wrap=True)
    else:
        say(console, "\n".join(describe(traced)))
