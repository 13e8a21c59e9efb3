"""`opid warm-start`: a policy that imitates the environment's expert, as a folder of its own outside any campaign."""

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
    base: Annotated[
        str | None,
        typer.Option(help="HF folder, or model of the hub, to go on from; default: a new tiny policy."),
    ] = None,
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="Where to train.")] = "cpu",
    overrides: Overrides = [],  # noqa: B006
) -> None:
    """Make a policy that imitates the environment's expert as section warm_start of CONFIG says: an HF folder for
    `policy`.

    Without --base it is a tiny one. With it, a pretrained model goes on in float32 with its own tokenizer: a short
    supervised start, after which it writes actions. Set warm_start.learning_rate to what fits the model (2e-5),
    warm_start.prompt_loss_weight to 0, and warm_start.skill_share to 0 if it shall not be shown any skill.

    Example: [bold]opid warm-start configs/quickstart.yaml --out my_policy[/], or
    [bold]opid warm-start CONFIG --base Qwen/Qwen2.5-0.5B-Instruct --out started --set warm_start.learning_rate=2e-5[/]
    """
    from opid_core.config import load_config

    config = load_config(config_path, overrides)
    _check_device(device)
    settings.apply(config.root)
    write_warm_start(config, out, device, console, _base_folder(config, base) if base else None)


def _base_folder(config: CampaignConfig, base: str) -> Path:
    """The folder of the model `base`, known to play and to be trained here. Raises ConfigError."""
    from flows import plan
    from opid_core.hub import policy_folder

    folder = policy_folder(base)
    plan.check_policy_and_engine(folder)
    plan.first_prompt(config, folder)
    return folder


def write_warm_start(
    config: CampaignConfig, out: Path, device: str, console: Console, base: Path | None = None
) -> None:
    """Train the policy with live progress and write it to `out`, whole or not at all. Raises ConfigError where that
    exists already or cannot be made."""
    from flows.display import live_progress
    from flows.output import new_folder
    from opid_core import warm_start
    from tasks.episodes import environment_maker
    from tasks.progress import report

    with new_folder(out) as folder, live_progress(console, first="warm start"):
        make_environment = environment_maker(config)
        warm_start.warm_start(config, make_environment, folder, lambda *stage: report(None, *stage), device, base)
    console.print(f"Policy written to {out}. Use it with: opid train CONFIG --set policy={out}", soft_wrap=True)


def _check_device(device: str) -> None:
    """Raise ConfigError for a GPU where there is none."""
    if device == "cpu":
        return
    import torch

    if not torch.cuda.is_available():
        raise ConfigError("--device: PyTorch finds no GPU on this machine; leave it out to train on the CPU")
