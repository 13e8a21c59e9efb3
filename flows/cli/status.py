"""`opid status`: a campaign as its committed manifests tell it, who works on it, and what stopped it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from flows.cli.common import CampaignName, Endpoint, Root, app, console

if TYPE_CHECKING:
    from infra.manifest import Manifest
    from infra.store import CampaignStore


@app.command()
def status(
    campaign: CampaignName,
    root: Root = "runs",
    endpoint_url: Endpoint = None,
    last: Annotated[int, typer.Option(min=1, help="How many of the newest iterations to show.")] = 10,
) -> None:
    """What is committed, who works on it, what stopped it: iterations, success, gates, overhead, the newest policy.

    Example: [bold]opid status quickstart[/]
    """
    from flows.reports.chains import read_chain
    from flows.reports.formatting import say
    from infra.stages import failures
    from infra.store import location, read_config

    store, chain = read_chain(root, campaign, endpoint_url)
    done, planned = max(0, len(chain) - 1), read_config(store)["iterations"]
    state = "nothing committed yet" if not chain else "unfinished" if done < planned else "finished"
    preset = f", preset {chain[0].preset}" if chain else ""
    say(
        console,
        f"{campaign} in {location(store)}: {done} iterations committed of {planned} first planned, {state}{preset}",
    )
    say(console, _driver(store))
    console.print(_commits(chain[-last:]))
    for manifest in chain[-last:]:
        for reason in manifest.degraded:
            say(console, f"Iteration {manifest.iteration} is degraded: {reason}")
    if chain:
        say(console, f"Newest policy: {location(store, chain[-1].policy.uri)}")
    following = len(chain)
    for number, failure in enumerate(failures(store, following), start=1):
        say(console, f"Iteration {following}, attempt {number} given up at {failure['at']}:", "red")
        say(console, failure["reason"])
    if done < planned:
        console.print("Continue with the same `opid train CONFIG` command.")


def _driver(store: CampaignStore) -> str:
    from infra import lease

    held = lease.status(store)
    if held is None or held[0].released:
        return "No driver works on it."
    holder, age_s = held
    return (
        f"Driver: process {holder.process_id} on {holder.host} since {holder.started_at}, "
        f"last heartbeat {age_s:.0f} s ago."
    )


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
    told = []
    for kind in ("episode", "step"):
        order, placebo = (numbers.get(f"signal/{kind}/{name}") for name in ("order", "placebo_order"))
        if order is not None:
            told.append(f"{kind} {order:.2f}" + ("" if placebo is None else f" ({placebo:.2f})"))
    return "\n".join(told)


def _gates(manifest: Manifest) -> str:
    passed = sum(gate.passed for gate in manifest.gates.values())
    warnings = sum(len(gate.warnings) for gate in manifest.gates.values())
    return f"{passed} of {len(manifest.gates)}" + (f" ({warnings})" if warnings else "")
