"""`opid status`: a campaign as its committed manifests tell it, who works on it, and what stopped it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from flows.cli.common import Endpoint, Root, app, console, error_console
from opid_core.errors import ConfigError

if TYPE_CHECKING:
    from flows.reports.standing import Standing
    from infra.manifest import Manifest

DEFAULT_ROOT = "runs"
"""It may be missing: nothing was trained here yet. A root that the user names is there."""
PREFECTS_SIGTERM = "TerminationSignal"
"""The exception that Prefect turns SIGTERM into."""


@app.command()
def status(
    campaign: Annotated[
        str | None, typer.Argument(metavar="CAMPAIGN", help="Name of the campaign; default: all of the root.")
    ] = None,
    root: Root = DEFAULT_ROOT,
    endpoint_url: Endpoint = None,
    last: Annotated[int, typer.Option(min=1, help="How many of the newest iterations to show.")] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of text.")] = False,
) -> None:
    """What is committed, who works on it, at which stage, the time left, what stopped it; or all campaigns of a root.

    Example: [bold]opid status quickstart[/], or [bold]opid status --root runs --json[/]
    """
    from flows.reports.chains import read_chain
    from flows.reports.formatting import quantity, say, show_table
    from flows.reports.standing import standing_of, standings
    from infra.objects import address_of

    if campaign is None:
        campaigns, left_out = standings(root, endpoint_url)
        for name, reason in left_out.items():
            say(error_console, f"Left out: {name}: {reason}")
        if as_json:
            say(console, json.dumps([asdict(one) for one in campaigns], indent=2))
        elif campaigns:
            show_table(console, overview(campaigns))
        else:
            folder = address_of(root, endpoint_url)
            if root != DEFAULT_ROOT and isinstance(folder, Path) and not os.path.isdir(folder):
                raise ConfigError(f"--root: {folder} is no folder")
            say(console, f"There is no campaign in {folder}.")
        return
    store, chain = read_chain(root, campaign, endpoint_url)
    standing = standing_of(store, chain)
    if as_json:
        commits = [{"iteration": m.iteration, "created_at": m.created_at, "metrics": dict(m.metrics)} for m in chain]
        say(console, json.dumps({**asdict(standing), "commits": commits[-last:]}, indent=2))
        return
    preset = f", preset {standing.preset}" if standing.preset else ""
    say(
        console,
        f"{campaign} in {standing.location}: {quantity(standing.iterations_done, 'iteration')} committed of "
        f"{standing.iterations_planned} planned, {'' if chain else 'nothing committed yet, '}"
        f"{standing.state}{preset}",
    )
    say(console, _now(standing))
    console.print(_commits(chain[-last:]))
    for manifest in chain[-last:]:
        for reason in manifest.degraded:
            say(console, f"Iteration {manifest.iteration} is degraded: {reason}")
    if standing.newest_policy:
        say(console, f"Newest policy: {standing.newest_policy}")
    for failure in standing.failures:
        say(console, f"Iteration {len(chain)} was given up, {failure}", "red")
    if standing.state in ("not begun", "silent", "stopped"):
        console.print("Continue with the same `opid train CONFIG` command.")


def _now(standing: Standing) -> str:
    """Who works on it, at what, and for how long yet; or what stopped it."""
    left = _time_left(standing)
    where = f"iteration {standing.iterations_done + 1 if standing.committed_at else 0}, {standing.stage}"
    match standing.state:
        case "running" if standing.stage is None:
            return f"All that was planned is committed.\nDriver: {standing.driver}."
        case "running":
            return f"At {where}{left}.\nDriver: {standing.driver}."
        case "silent":
            return f"At {where}. Its driver is silent and may have been killed:\n{standing.driver}."
        case "stopped":
            return f"Stopped at {where}{left}\n({_how_it_ended(standing)})."
        case "not begun":
            return "No driver has begun yet: `opid train` takes up to a minute or two to start Prefect."
    return "No driver works on it."


def _time_left(standing: Standing) -> str:
    if standing.seconds_left is not None:
        return f", about {timedelta(seconds=round(standing.seconds_left))} left"
    if standing.seconds_left_at_least is not None:
        least = timedelta(seconds=round(standing.seconds_left_at_least))
        return f", at least about {least} left, by its stages so far"
    return ", time left not known yet" if standing.iterations_done == 0 else ""


def _how_it_ended(standing: Standing) -> str:
    from infra.lease import INTERRUPTED

    ended, failed = standing.ended, "after a failure, see below" if standing.failures else ""
    if ended == INTERRUPTED:
        return ", ".join(filter(None, ("by Ctrl-C", failed)))
    if ended and ended.startswith(PREFECTS_SIGTERM):
        return ", ".join(filter(None, ("by SIGTERM, as of kill, or of a run that was cancelled", failed)))
    if ended and not any(ended in failure for failure in standing.failures):
        return f"by {ended}"
    return failed or "with no failure recorded"


def overview(campaigns: Sequence[Standing]) -> Table:
    """All campaigns in 80 columns, unless a name is long: it is never broken, so that it can be copied."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold underline")
    table.add_column("campaign", min_width=max(cell_len(one.campaign) for one in campaigns), no_wrap=True)
    for header in ("iterations", "state", "stage", "time left", "newest evaluation"):
        table.add_column(header)
    for one in campaigns:
        seconds, least = one.seconds_left, one.seconds_left_at_least
        told = "" if seconds is None and least is None else str(timedelta(seconds=round(seconds or least or 0)))
        table.add_row(
            one.campaign,
            f"{one.iterations_done} of {one.iterations_planned}",
            one.state,
            one.stage or "",
            "" if one.state == "finished" else told if least is None else f"> {told}",
            "\n".join(f"{name} {share:.1%}" for name, share in one.success.items()),
        )
    return table


def _commits(chain: Sequence[Manifest]) -> Table:
    """The commits in 80 columns: a line of each cell for each temperature, kind of skill, and duration."""
    from flows.reports.formatting import percent

    header = ("iter-\nation", "at\n(UTC)", "success", "KL", "skills\non", "skills order\n(placebo)", "evaluation")
    header += ("gates\n(warned)", "took,\noverhead")
    table = Table(*header, box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold underline")
    for manifest in chain:
        numbers = manifest.metrics
        evaluation = "\n".join(
            f"{name.split('/')[1]} {value:.1%}"
            for name, value in sorted(numbers.items())
            if name.startswith("evaluation/") and name.endswith("success_micro") and value is not None
        )
        seconds = (numbers.get("seconds/iteration_s"), numbers.get("seconds/overhead_s"))
        table.add_row(
            Text.assemble(str(manifest.iteration), ("\ndegraded" if manifest.degraded else "", "yellow")),
            manifest.created_at[5:16].replace("T", "\n"),
            percent(numbers.get("rollout/success_micro")),
            "" if (kl := numbers.get("update/kl_k3")) is None else f"{kl:.4f}",
            percent(numbers.get("skills/coverage")),
            _order(numbers),
            evaluation,
            _gates(manifest),
            "\n".join(f"{value:.{digits}f} s" for digits, value in enumerate(seconds) if value is not None),
        )
    return table


def _order(numbers: Mapping[str, float | None]) -> str:
    """How well each kind of skill orders what was done in one state, and its placebo where there is one."""
    lines = []
    for kind in ("episode", "step"):
        order, placebo = (numbers.get(f"signal/{kind}/{name}") for name in ("order", "placebo_order"))
        if order is not None:
            lines.append(f"{kind} {order:.2f}" + ("" if placebo is None else f" ({placebo:.2f})"))
    return "\n".join(lines)


def _gates(manifest: Manifest) -> str:
    passed = sum(gate.passed for gate in manifest.gates.values())
    warnings = sum(len(gate.warnings) for gate in manifest.gates.values())
    return f"{passed} of {len(manifest.gates)}" + (f" ({warnings})" if warnings else "")
