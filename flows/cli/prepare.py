"""`opid prepare`: a model in another format as a policy that can be trained."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows import settings
from flows.cli.common import app, console


@app.command()
def prepare(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="GGUF file, or HF model folder without safetensors.")],
    out: Annotated[Path, typer.Option(help="Folder for the policy; must not exist.")],
) -> None:
    """Make an HF folder with safetensors of a model in another format, for `policy`. A folder that has them needs no
    preparing, tied embeddings or not.

    Example: [bold]opid prepare SmolLM2-135M-Instruct.Q4_1.gguf --out models/SmolLM2-135M-Instruct[/]
    """
    settings.apply("runs")
    from opid_core.policies import prepare_policy
    from opid_core.policy_check import check_policy_folder

    prepare_policy(model, out)
    check_policy_folder(out)
    console.print(f"Policy written to {out}. Use it with: opid train CONFIG --set policy={out}", soft_wrap=True)
