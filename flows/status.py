"""`opid status`: a campaign as its committed manifests tell it."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from infra.store import find_campaign, manifests, read_config


def show_status(root: Path, campaign: str, last: int, console: Console) -> None:
    """Print the newest `last` commits and what comes next. Raises ConfigError for an unknown campaign."""
    store = find_campaign(root, campaign)
    chain, config = manifests(store), read_config(store)
    done, planned = max(0, len(chain) - 1), config["iterations"]
    state = "nothing committed yet" if not chain else "unfinished" if done < planned else "finished"
    console.print(
        f"[bold]{campaign}[/] in {store.folder}: {done} iterations committed of {planned} first planned, {state}",
        soft_wrap=True,
    )
    table = Table("iteration", "committed", "success", "KL to old policy", "skills on", "evaluation", "gates")
    for manifest in chain[-last:]:
        numbers = manifest.metrics
        evaluation = ", ".join(
            f"{name.split('/')[1]} {value:.1%}"
            for name, value in sorted(numbers.items())
            if name.startswith("evaluation/") and name.endswith("success_micro") and value is not None
        )
        passed = sum(gate.passed for gate in manifest.gates.values())
        table.add_row(
            str(manifest.iteration),
            manifest.created_at[:19].replace("T", " "),
            _share(numbers.get("rollout/success_micro")),
            "" if (kl := numbers.get("update/kl_k3")) is None else f"{kl:.4f}",
            _share(numbers.get("skills/coverage")),
            evaluation,
            f"{passed} of {len(manifest.gates)} passed",
        )
    console.print(table)
    if chain:
        console.print(f"Newest policy: {store.folder / chain[-1].policy.uri}", soft_wrap=True)
    if done < planned:
        console.print("Continue with the same `opid train CONFIG` command.")


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"
