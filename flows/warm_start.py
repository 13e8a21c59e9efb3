"""`opid warm-start`: a policy that imitates the environment's expert, as a folder of its own outside any campaign."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from flows import plan
from flows.display import live_progress
from flows.output import new_folder
from opid_core import warm_start
from opid_core.config import CampaignConfig
from opid_core.errors import ConfigError
from opid_core.hub import policy_folder
from tasks.episodes import environment_maker
from tasks.progress import report


def write_warm_start(
    config: CampaignConfig, out: Path, device: str, console: Console, base: Path | None = None
) -> None:
    """Train the policy with live progress and write it to `out`, whole or not at all. Raises ConfigError where that
    exists already or cannot be made."""
    with new_folder(out) as folder, live_progress(console, first="warm start"):
        make_environment = environment_maker(config)
        warm_start.warm_start(config, make_environment, folder, lambda *stage: report(None, *stage), device, base)
    console.print(f"Policy written to {out}. Use it with: opid train CONFIG --set policy={out}", soft_wrap=True)


def base_folder(config: CampaignConfig, base: str) -> Path:
    """The folder of the model `base`, known to play and to be trained here. Raises ConfigError."""
    folder = policy_folder(base)
    plan.check_policy_and_engine(folder)
    plan.first_prompt(config, folder)
    return folder


def check_device(device: str) -> None:
    """Raise ConfigError for a GPU where there is none."""
    if device == "cpu":
        return
    import torch

    if not torch.cuda.is_available():
        raise ConfigError("--device: PyTorch finds no GPU on this machine; leave it out to train on the CPU")
