"""`python -m flows.cli.commands`: docs/commands.md, made from the commands themselves."""

from __future__ import annotations

import re
from typing import Any

import typer

from flows.cli.main import app
from flows.reference import table

_INTRODUCTION = """\
# Commands

Every command of `opid`, as its `--help` has it. This page is made from the commands by `make docs`.

* An argument in brackets may be left out. One with `...` may stand several times, as an option whose meaning says so.
* Exit codes: 0 for success, 2 for what you can mend (a config, a name, a missing package; one message says what), 130
  after Ctrl-C, 143 after SIGTERM, 1 for anything else.
"""


def reference() -> str:
    """The whole page in Markdown: a section a command, in the order of `opid --help`."""
    group: Any = typer.main.get_command(app)
    return "\n".join([_INTRODUCTION, *(_section(name, command) for name, command in group.commands.items())])


def _section(name: str, command: Any) -> str:
    context = command.context_class(command, info_name=f"opid {name}")
    params = [param for param in command.get_params(context) if param.name != "help"]
    arguments = [param for param in params if param.param_type_name == "argument"]
    names = [one.metavar.strip("[].") + ("..." if one.nargs == -1 else "") for one in arguments]
    usage = " ".join(name if one.required else f"[{name}]" for name, one in zip(names, arguments, strict=True))
    rows = [_row(*param.get_help_record(context)) for param in params]
    return "\n\n".join(
        [
            f"## `opid {name}`",
            *([f"`opid {name} {usage}`"] if usage else []),
            *([_words(command.help)] if command.help else []),
            table(("argument or option", "default, bounds", "meaning"), rows) if rows else "It has no options.\n",
        ]
    )


def _row(written: str, help_text: str) -> tuple[str, str, str]:
    """A row from what `--help` says of a parameter: its type and its meaning, with default and bounds in brackets."""
    meaning, _, about = help_text.removesuffix("]").partition("  [")
    name = re.sub(r"^\[?([A-Z_]+).* <.*>$", r"\1", written)  # an argument's type says nothing
    return f"`{name}`", f"`{about.removeprefix('default: ')}`" if about else "", _words(meaning)


def _words(help_text: str) -> str:
    """A help text in Markdown: what is bold in a terminal is code here."""
    return re.sub(r"\[bold\](.*?)\[/\]", r"`\1`", help_text.replace("<", "&lt;"), flags=re.DOTALL)


if __name__ == "__main__":
    print(reference(), end="")
