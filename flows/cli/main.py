"""The `opid` command: every command is the module of its name."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.markup import escape

from flows import settings
from flows.cli import (  # noqa: F401 - each adds its command
    audit,
    compare,
    doctor,
    evaluate,
    export,
    play,
    prepare,
    reproduce,
    rollout,
    serve,
    status,
    sweep,
    tasks,
    trace,
    train,
    verify,
    warm_start,
)
from flows.cli.common import app
from opid_core.errors import OpidError


def main() -> None:
    """Entry point: OPID's own errors become one message and exit code 2."""
    settings.fit_machine()
    try:
        app()
    except OpidError as error:
        Console(stderr=True).print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(2)
