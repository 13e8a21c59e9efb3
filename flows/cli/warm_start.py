"""`opid warm-start`: the tiny policy of a config as a folder of its own, outside any campaign."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from opid_core.config import CampaignConfig
from opid_core.errors import ConfigError
from opid_core.warm_start import warm_start
from tasks.stage import environment_maker


def make_warm_start(config: CampaignConfig, out: Path, device: str, console: Console) -> None:
    """Write the policy to `out`. Raises ConfigError when it exists already."""
    if out.exists():
        raise ConfigError(f"--out: {out} exists already; name a new folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    with Progress(console=console, transient=True) as bars:
        ids: dict[str, int] = {}

        def show(stage: str, done: int, total: int, note: str) -> None:
            if stage not in ids:
                ids[stage] = int(bars.add_task(stage, total=total))
            bars.update(ids[stage], completed=done, description=f"{stage} {note}")  # pyright: ignore[reportArgumentType]

        warm_start(config, environment_maker(config), out, show, device)
    console.print(f"Policy written to {out}. Use it with: opid train CONFIG --set policy={out}")
