"""How numbers and texts look, in the terminal and in Markdown: every report uses these."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text


def plain(text: str, style: str = "") -> Text:
    """A text that is data (of an environment, a policy, an analyzer) for the terminal: as it is, without markup, its
    control characters (but newlines) as escapes, so that it cannot steer the terminal."""
    return Text("".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text), style=style)


def say(console: Console, text: str, style: str = "") -> None:
    """Print a `plain` text; no line is broken, so that paths and commands can be copied."""
    console.print(plain(text, style), soft_wrap=True)


def percent(share: float | None, missing: str = "") -> str:
    """A share in per cent with one digit; `missing` where there is none."""
    return missing if share is None else f"{share:.1%}"


def interval(low: float, high: float) -> str:
    """The bounds of an interval of shares."""
    return f"{low:.1%} to {high:.1%}"


def with_interval(share: float, low: float, high: float) -> str:
    """A share with its interval."""
    return f"{share:.1%} ({interval(low, high)})"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table in Markdown."""
    return ["| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows)]
