"""What the commands share: the application, the console, and arguments that several take.

`opid --help` imports every module of this package: what takes long to import is imported in the functions that need it.
"""

from __future__ import annotations

import importlib.metadata
import inspect
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from flows.reports.formatting import Terminal
from opid_core.errors import ConfigError, comes_from, is_interrupt
from opid_core.local_paths import root_path
from opid_core.wording import FORMS, SERVER_ADDRESS

HELP = (
    "Train language agents with on-policy skill distillation.\n\n"
    "Start with [bold]opid doctor[/], then [bold]opid init my_project[/]."
)


class _FlagsWithoutValue:
    """Of a command: its flags take no value, and its help shows none for them, where Typer writes `<bool>`."""

    def get_params(self, ctx: Any) -> Any:
        params = super().get_params(ctx)  # pyright: ignore[reportAttributeAccessIssue]
        for param in params:
            if getattr(param, "is_flag", False):
                param.metavar = ""
        return params


class _Group(_FlagsWithoutValue, TyperGroup):
    """`opid` itself."""


class Command(_FlagsWithoutValue, TyperCommand):
    """Every command of `opid`."""


app = typer.Typer(
    name="opid",
    cls=_Group,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
console = Terminal()
error_console = Terminal(stderr=True)


def unbroken(command: Callable[..., Any] | None) -> str | None:
    """The help of a command: its docstring, each paragraph on a line of its own, which the terminal then breaks."""
    paragraphs = (inspect.getdoc(command) or "").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs) or None


def _print_version(wanted: bool) -> None:
    if wanted:
        console.print(f"opid {importlib.metadata.version('opid')}", highlight=False)
        raise typer.Exit


@app.callback(help=HELP)
def opid(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """The options of `opid` itself."""


@contextmanager
def exit_on_interrupt() -> Iterator[None]:
    """Around what may be interrupted: Ctrl-C ends the command with exit code 130, SIGTERM with 143, and both say how to
    go on. A second SIGTERM waits for nothing; within a flow it cuts short what the first one made it clean up."""
    from prefect.exceptions import TerminationSignal  # by which a flow's run knows the reason

    def end(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        raise TerminationSignal(number)

    before = signal.signal(signal.SIGTERM, end)  # within a flow Prefect has its own, which ends in this one
    try:
        yield
    except BaseException as error:
        is_ended = comes_from(error, TerminationSignal)
        if not (is_ended or is_interrupt(error)):
            raise
        console.print(f"{'Ended by SIGTERM' if is_ended else 'Interrupted'}. The same command continues where it was.")
        raise typer.Exit(128 + signal.SIGTERM if is_ended else 130) from None
    finally:
        signal.signal(signal.SIGTERM, before)


def _root(text: str) -> str:
    """`text` with `~` and environment variables put in: a shell leaves them alone in `--root=~/runs`."""
    return root_path(text, "--root")


def _server(address: str | None) -> str | None:
    """An address as the config's `storage.endpoint_url` may be."""
    if address is not None and not re.fullmatch(SERVER_ADDRESS, address):
        raise ConfigError(f"--endpoint-url: {FORMS[SERVER_ADDRESS]}")
    return address


ConfigPath = Annotated[
    Path, typer.Argument(metavar="CONFIG", help="Campaign config (YAML); see docs/configuration.md.")
]
Overrides = Annotated[
    list[str], typer.Option("--set", metavar="KEY=VALUE", help="Override a config value; repeat for more.")
]
Card = Annotated[
    str | None,
    typer.Option(
        help="With --dry-run: estimate for this card, as in H100 or RTX4090; default: this machine's GPU, else an H100 "
        "for bfloat16 and the CPU for float32 or what `auto` chose."
    ),
]


def check_card(card: str | None, dry_run: bool) -> None:
    """Raise ConfigError for a card without a data sheet, and where nothing is estimated."""
    if card is None:
        return
    if not dry_run:
        raise ConfigError("--card: only a dry run estimates; add --dry-run")
    from flows.cost import known_card

    known_card(card)


CampaignName = Annotated[str, typer.Argument(metavar="CAMPAIGN", help="Name of the campaign.")]
Root = Annotated[str, typer.Option(help="Root of the store: a folder or s3://bucket/prefix.", callback=_root)]
Endpoint = Annotated[
    str | None,
    typer.Option(help="Address of an S3-compatible server; default: what the AWS settings say.", callback=_server),
]
EnvironmentName = Annotated[
    str,
    typer.Argument(
        metavar="ENV",
        help="Environment: alfworld, webshop, search_qa, scienceworld, gymnasium, textarena, openenv, or module:name "
        "of your own.",
    ),
]
Options = Annotated[
    list[str], typer.Option("--set", metavar="KEY=VALUE", help="Set an option of the environment; repeat for more.")
]
