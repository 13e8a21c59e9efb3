"""Markdown in the terminal, whose tables are broken between words alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions
from rich.markdown import Markdown, TableElement
from rich.table import Column, Table

PADDING = 2
"""Characters that a column takes beside its text."""


class _WholeWords(TableElement):
    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table]:
        for table in super().__rich_console__(console, options):
            assert isinstance(table, Table)
            _fit(table.columns, options.max_width)
            yield table


class WholeMarkdown(Markdown):
    """Markdown in whose tables nothing is cut: Rich itself makes the widest columns narrower, whatever their words."""

    elements: ClassVar = {**Markdown.elements, "table_open": _WholeWords}


def _fit(columns: list[Column], width: int) -> None:
    """Give each column as much as its longest word needs, and what is left to those that have to break most."""
    texts = [[str(cell) for cell in (column.header, *column.cells)] for column in columns]
    given = [max((cell_len(word) for text in of for word in text.split()), default=0) for of in texts]
    wanted = [max(map(cell_len, of)) for of in texts]
    for _ in range(width - sum(given) - PADDING * len(columns)):
        most = max(range(len(columns)), key=lambda number: wanted[number] - given[number])
        given[most] += given[most] < wanted[most]
    for column, least in zip(columns, given, strict=True):
        column.overflow = "fold"  # of a word that is longer than the line
        if sum(given) + PADDING * len(columns) <= width:
            column.width = least
