"""What each metric is, from docs/metrics.md, which is installed with OPID."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from opid_core.local_paths import shipped_file

_ROW = re.compile(r"^\| `([^`]+)` \| (.*) \| (.*) \|(.*)\|$", re.MULTILINE)
_PLACEHOLDER = re.compile(r"TYPE|KIND|STAGE|\btT\b")
"""A part of a name that stands for any text; `tT` for a further split's temperature too."""


@dataclass(frozen=True)
class Definition:
    """A line of the page, as plain text."""

    what: str
    range: str
    bad: str
    """What a bad value is, and what it means; empty where none is by itself."""

    @property
    def note(self) -> str:
        """All of it as one text; empty of an unknown metric."""
        if not self.what:
            return ""
        return f"{self.what} ({self.range})" + (f". A bad value: {self.bad}" if self.bad else "")


UNKNOWN = Definition("", "", "")
"""Of a metric that is not on the page, as an own method's."""


def definition_of(metric: str) -> Definition:
    """The definition of a metric by its name."""
    return next((found for form, found in _definitions() if form.fullmatch(metric)), UNKNOWN)


@cache
def _definitions() -> list[tuple[re.Pattern[str], Definition]]:
    page = shipped_file("docs/metrics.md")
    rows = _ROW.findall(page.read_text(encoding="utf-8")) if page else []
    return [(_form(name), Definition(*map(_plain, cells))) for name, *cells in rows]


def _form(name: str) -> re.Pattern[str]:
    parts = map(re.escape, _PLACEHOLDER.split(name))
    return re.compile("[^/]+".join(parts))


def _plain(cell: str) -> str:
    return re.sub(r"\[([^]]+)\]\([^)]+\)", r"\1", cell).replace("`", "").strip()
