"""`opid warm-start`: the tiny policy of a config as a folder of its own, outside any campaign."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows import settings
from flows.cli.common import ConfigPath, Overrides, app, console
from opid_core.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from opid_core.config import CampaignConfig


@app.command()
def warm_start(
    config_path: ConfigPath,
    out: Annotated[Path, typer.Option(help="Folder for the policy; must not exist.")],
    device: Annotated[str, typer.Option(help="Where to train: cpu or cuda.")] = "cpu",
    overrides: Overrides = [],  # noqa: B006
) -> None:
    """Make the tiny policy of CONFIG by imitating the environment's expert, as an HF folder for `policy`.

    Example: [bold]opid warm-start configs/quickstart.yaml --out my_policy[/]
    """
    from opid_core.config import load_config

    config = load_config(config_path, overrides)
    settings.apply(config.root)
    write_warm_start(config, out, device, console)


def write_warm_start(config: CampaignConfig, out: Path, device: str, console: Console) -> None:
    """Train the policy with live progress and write it to `out`. Raises ConfigError where that exists already."""
    from flows.display import live_progress
    from opid_core import warm_start
    from tasks.episodes import environment_maker
    from tasks.progress import report

    if out.exists():
        raise ConfigError(f"--out: {out} exists already; name a new folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    with live_progress(console, first="warm start"):
        warm_start.warm_start(config, environment_maker(config), out, lambda *stage: report(None, *stage), device)
    console.print(f"Policy written to {out}. Use it with: opid train CONFIG --set policy={out}", soft_wrap=True)
