"""How numbers and texts look, in the terminal and in Markdown: every report uses these."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.measure import Measurement
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from opid_core.evaluation import Estimate


_UNLIMITED = 10_000
"""Characters of a line: more than any table here has."""
_TABLE = re.compile(r"(?:^\|.*(?:\n|\Z))+", re.MULTILINE)


class Terminal(Console):
    """The terminal, for all that is printed. Much of it is data (of a task, a policy, an analyzer, a file's name), and
    cannot steer the terminal: no text is markup, and control characters are shown as escapes."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, markup=False, emoji=False)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        """Whatever is printed comes through here, as pieces of text; `control` ones are Rich's own."""
        for piece in super().render(renderable, options):
            yield piece if piece.control else Segment(_printable(piece.text), piece.style)


def _printable(text: str) -> str:
    return text if text.isprintable() else "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def say(console: Console, text: str, style: str = "") -> None:
    """Print a text; no line is broken, so that paths and commands can be copied."""
    console.print(Text(text, style), soft_wrap=True)


def show_table(console: Console, table: Table) -> None:
    """Print a table. Where there is no terminal (a pipe, a file) it is as wide as its cells are, so that no line of
    them is broken."""
    if not console.is_terminal:
        table.width = Measurement.get(console, console.options.update(width=_UNLIMITED), table).maximum
    console.print(table, crop=False)


def show_markdown(console: Console, text: str) -> None:
    """Print Markdown; what a link leads to is shown, an image is left out, no line of a code block is broken, so that
    commands can be copied, and a table that is too wide is printed in parts, so that no cell is cut."""
    from flows.reports.markdown import WholeMarkdown

    without_images = re.sub(r"^!\[.*\]\(.*\)$", "", text, flags=re.MULTILINE)
    for number, part in enumerate(re.split(r"^```\w*\n(.*?)^```$", without_images, flags=re.MULTILINE | re.DOTALL)):
        if number % 2:
            say(console, f"\n{part}")
        elif part.strip():
            fitting = re.sub(_TABLE, lambda table: _in_parts(table[0], console.width), part)
            console.print(WholeMarkdown(fitting, hyperlinks=False))


def _in_parts(table: str, width: int) -> str:
    """A Markdown table as several below each other, each with the first column and with as many of the others as fit
    into `width` characters when their texts are broken between words."""
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table.splitlines()]
    if len({len(row) for row in rows}) > 1:
        return table
    columns = zip(*rows, strict=True)
    first, *others = [max(len(word) for cell in column for word in cell.split() or [""]) + 2 for column in columns]
    parts: list[list[int]] = [[]]
    for number, needed in enumerate(others):
        if parts[-1] and first + sum(others[n] for n in parts[-1]) + needed > width:
            parts.append([])
        parts[-1].append(number)
    chosen = [[[row[0], *(row[1 + number] for number in part)] for row in rows] for part in parts]
    return "\n".join("".join(f"| {' | '.join(row)} |\n" for row in part) for part in chosen)


def quantity(count: int, thing: str) -> str:
    """`count` of a thing that is named in the singular: `1 update`, `1,024 updates`."""
    return f"{count:,} {thing}{'' if count == 1 else 's'}"


def percent(share: float | None, missing: str = "") -> str:
    """A share in per cent with one digit; `missing` where there is none."""
    return missing if share is None else f"{share:.1%}"


def interval(low: float, high: float) -> str:
    """The bounds of an interval of shares."""
    return f"{low:.1%} to {high:.1%}"


def with_interval(share: float, low: float, high: float) -> str:
    """A share with its interval."""
    return f"{share:.1%} ({interval(low, high)})"


def score_text(score: Estimate | None) -> str:
    """A mean score, 0 to 100 as papers give it, with its interval; "" where there is none."""
    return "" if score is None else f"{100 * score.mean:.1f} ({100 * score.low:.1f} to {100 * score.high:.1f})"
