"""`opid init`: a folder to begin with."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from flows.cli.common import app, console
from opid_core.errors import ConfigError


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write to; made where it does not exist.")],
) -> None:
    """Write commented configs to begin with: one that runs on a CPU as it is, and one for your own model.

    Example: [bold]opid init my_project[/]
    """
    from flows.output import make_folder
    from flows.reports.formatting import say
    from flows.schema import text
    from infra.local_objects import faults

    templates = sorted((Path(__file__).parents[1] / "templates").glob("*.yaml"))
    files = {template.name: template.read_text(encoding="utf-8") for template in templates}
    files["opid.schema.json"] = text()
    for name in files:
        if os.path.exists(folder / name):
            raise ConfigError(f"{folder / name} exists already; name another folder")
    make_folder(folder, "DIR")
    with faults(folder, "written"):
        for name, content in files.items():
            (folder / name).write_text(content, encoding="utf-8")
    say(console, f"Written to {folder}: {', '.join(files)}")
    say(console, f"Check the first: opid train {folder / 'first.yaml'} --dry-run")
    say(console, f"Run it:          opid train {folder / 'first.yaml'}")
