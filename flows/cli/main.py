"""The `opid` command: every command is the module of its name."""

from __future__ import annotations

import sys
import traceback

from rich.text import Text

from flows import settings
from flows.cli import (  # noqa: F401 - each adds its command
    audit,
    compare,
    doctor,
    evaluate,
    export,
    init,
    play,
    prepare,
    reproduce,
    rollout,
    schema,
    serve,
    status,
    sweep,
    tasks,
    trace,
    train,
    verify,
    warm_start,
)
from flows.cli.common import Command, app, error_console, unbroken
from infra import processes
from opid_core.errors import OpidError

for command in app.registered_commands:
    command.help, command.cls = unbroken(command.callback), Command


def main() -> None:
    """Entry point: OPID's own errors become one message and exit code 2; a bug shows its trace."""
    settings.fit_machine()
    processes.collect_garbage_less_often()
    try:
        app()
    except OpidError as error:
        error_console.print(Text.assemble(("error:", "bold red"), f" {error}"), soft_wrap=True)
        sys.exit(2)
    except Exception:  # its message may hold a text of others, as all that is printed
        error_console.print(Text(traceback.format_exc()), soft_wrap=True)
        sys.exit(1)
