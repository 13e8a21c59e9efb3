"""Text that is data (of an environment, a policy, an analyzer) on a terminal: shown as it is, and nothing more."""

from __future__ import annotations

from rich.text import Text


def plain(text: str, style: str = "") -> Text:
    """`text` without markup, its control characters (but newlines) as escapes: it cannot steer the terminal."""
    return Text("".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text), style=style)
