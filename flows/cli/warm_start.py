"""`opid warm-start`: the tiny policy of a config as a folder of its own, outside any campaign."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

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
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="Where to train.")] = "cpu",
    overrides: Overrides = [],  # noqa: B006
) -> None:
    """Make the tiny policy of CONFIG by imitating the environment's expert, as an HF folder for `policy`.

    Example: [bold]opid warm-start configs/quickstart.yaml --out my_policy[/]
    """
    from opid_core.config import load_config

    config = load_config(config_path, overrides)
    _check_device(device)
    settings.apply(config.root)
    write_warm_start(config, out, device, console)


def write_warm_start(config: CampaignConfig, out: Path, device: str, console: Console) -> None:
    """Train the policy with live progress and write it to `out`, whole or not at all. Raises ConfigError where that
    exists already or cannot be made."""
    from flows.display import live_progress
    from flows.output import new_folder
    from opid_core import warm_start
    from tasks.episodes import environment_maker
    from tasks.progress import report

    with new_folder(out) as folder, live_progress(console, first="warm start"):
        warm_start.warm_start(config, environment_maker(config), folder, lambda *stage: report(None, *stage), device)
    console.print(f"Policy written to {out}. Use it with: opid train CONFIG --set policy={out}", soft_wrap=True)


def _check_device(device: str) -> None:
    """Raise ConfigError for a GPU where there is none."""
    if device == "cpu":
        return
    import torch

    if not torch.cuda.is_available():
        raise ConfigError("--device: PyTorch finds no GPU on this machine; leave it out to train on the CPU")
