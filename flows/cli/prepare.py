"""`opid prepare`: a downloaded model as a policy that can be trained."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows import settings
from flows.cli.common import app, console


@app.command()
def prepare(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="HF model folder, or GGUF file.")],
    out: Annotated[Path, typer.Option(help="Folder for the policy; must not exist.")],
) -> None:
    """Make a model usable as `policy`: an HF folder whose output layer is not tied to its embeddings.

    Example: [bold]opid prepare models/Qwen2.5-3B-Instruct --out models/Qwen2.5-3B-Instruct-untied[/]
    """
    settings.apply("runs")
    from opid_core.policies import prepare_policy
    from opid_core.policy_check import check_policy_folder

    prepare_policy(model, out)
    check_policy_folder(out)
    console.print(f"Policy written to {out}. Use it with: opid train CONFIG --set policy={out}", soft_wrap=True)
