"""`opid status`: a campaign as its committed manifests tell it, who works on it, and what stopped it."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from infra import lease, stages
from infra.manifest import Manifest
from infra.store import CampaignStore, find_campaign, location, manifests, next_iteration, read_config


def show_status(root: str, campaign: str, endpoint_url: str | None, last: int, console: Console) -> None:
    """Print the newest `last` commits, what comes next, and why it has not come. Raises ConfigError for an unknown
    campaign."""
    store = find_campaign(root, campaign, endpoint_url)
    chain, config = manifests(store), read_config(store)
    done, planned = max(0, len(chain) - 1), config["iterations"]
    state = "nothing committed yet" if not chain else "unfinished" if done < planned else "finished"
    preset = f", preset {chain[0].preset}" if chain else ""
    console.print(
        f"[bold]{campaign}[/] in {location(store)}: {done} iterations committed of {planned} first planned, {state}"
        + preset,
        soft_wrap=True,
    )
    console.print(_driver(store), soft_wrap=True)
    console.print(_commits(chain[-last:]))
    for manifest in chain[-last:]:
        for reason in manifest.degraded:
            console.print(f"Iteration {manifest.iteration} is degraded: {reason}", markup=False, soft_wrap=True)
    if chain:
        console.print(f"Newest policy: {location(store, chain[-1].policy.uri)}", soft_wrap=True)
    for number, failure in enumerate(stages.failures(store, next_iteration(chain)), start=1):
        console.print(f"[red]Iteration {next_iteration(chain)}, attempt {number} given up[/] at {failure['at']}:")
        console.print(failure["reason"], markup=False, highlight=False, soft_wrap=True)
    if done < planned:
        console.print("Continue with the same `opid train CONFIG` command.")


def _driver(store: CampaignStore) -> str:
    found = lease.status(store)
    if found is None or found.released:
        return "No driver works on it."
    age = "none yet" if found.heartbeat_age_s is None else f"{found.heartbeat_age_s:.0f} s ago"
    holder = found.holder
    return (
        f"Driver: process {holder.process_id} on {holder.host} since {holder.started_at}, lease epoch {found.epoch}, "
        f"last heartbeat {age}."
    )


def _commits(chain: list[Manifest]) -> Table:
    table = Table("iteration", "committed", "success", "KL", "skills on", "evaluation", "gates", "took", "overhead")
    for manifest in chain:
        numbers = manifest.metrics
        evaluation = ", ".join(
            f"{name.split('/')[1]} {value:.1%}"
            for name, value in sorted(numbers.items())
            if name.startswith("evaluation/") and name.endswith("success_micro") and value is not None
        )
        took_s, overhead_s = numbers.get("seconds/iteration_s"), numbers.get("seconds/overhead_s")
        table.add_row(
            f"{manifest.iteration} [yellow]degraded[/]" if manifest.degraded else str(manifest.iteration),
            manifest.created_at[:19].replace("T", " "),
            _share(numbers.get("rollout/success_micro")),
            "" if (kl := numbers.get("update/kl_k3")) is None else f"{kl:.4f}",
            _share(numbers.get("skills/coverage")),
            evaluation,
            _gates(manifest),
            "" if took_s is None else f"{took_s:.0f} s",
            "" if overhead_s is None or not took_s else f"{overhead_s:.1f} s, {overhead_s / took_s:.1%}",
        )
    return table


def _gates(manifest: Manifest) -> str:
    passed = sum(gate.passed for gate in manifest.gates.values())
    warnings = sum(len(gate.warnings) for gate in manifest.gates.values())
    noted = f", {warnings} warning{'s' if warnings > 1 else ''}" if warnings else ""
    return f"{passed} of {len(manifest.gates)} passed{noted}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"
