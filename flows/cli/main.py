"""The `opid` command."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.markup import escape

from flows.cli import campaigns, records, worlds  # noqa: F401 - they add their commands
from flows.cli.common import app, console
from opid_core.errors import OpidError

__all__ = ["app", "console", "main"]


def main() -> None:
    """Entry point: OPID's own errors become one message and exit code 2."""
    try:
        app()
    except OpidError as error:
        Console(stderr=True).print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(2)
