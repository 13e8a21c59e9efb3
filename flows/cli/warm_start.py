"""`opid warm-start`; `flows.warm_start` makes the policy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from flows import settings
from flows.cli.common import ConfigPath, Overrides, app, console


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
    settings.apply(config.root)
    from flows.warm_start import base_folder, check_device, write_warm_start

    check_device(device)
    write_warm_start(config, out, device, console, base_folder(config, base) if base else None)
