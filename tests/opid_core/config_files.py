from __future__ import annotations

from pathlib import Path


def write(folder: Path, text: str) -> Path:
    """A config file of this text."""
    path = folder / "campaign.yaml"
    path.write_text(text, encoding="utf-8")
    return path
