"""Tables and texts of others in Markdown: for artifacts, trackers and reports."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table in Markdown."""
    return ["| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows)]


def as_code(text: Any) -> str:
    """A text of others as code in a cell of a table: it can be neither markup nor another cell."""
    return f"`{' '.join(str(text).replace('`', '').split()).replace('|', '/') or ' '}`"
