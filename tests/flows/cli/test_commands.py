"""docs/commands.md, made from the commands."""

from __future__ import annotations

from pathlib import Path

from flows.cli.commands import reference
from flows.cli.main import app

PAGE = Path(__file__).parents[3] / "docs" / "commands.md"


def test_the_committed_page_is_what_the_commands_say():
    assert PAGE.read_text(encoding="utf-8") == reference(), "docs/commands.md is out of date: run `make docs`"


def test_every_command_has_a_section_and_every_parameter_a_meaning():
    page = reference()
    assert page.count("\n## `opid ") == len(app.registered_commands)
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| `")]
    assert len(rows) > 50
    assert [row[0] for row in rows if not row[2].strip(" |")] == []


def test_what_a_section_says():
    page = reference()
    assert "\n`opid sweep CAMPAIGN`\n\nList, or delete, what interrupted runs left behind: " in page
    assert "\nExample: `opid sweep quickstart --older-than-h 48 --delete`\n" in page
    assert "| `CAMPAIGN` | `required` | Name of the campaign. |" in page
    assert "| `--older-than-h <float range>` | `24.0; x>=0` | Only what has not changed for so many hours. |" in page
    assert "| `--delete` |  | Delete it; without this it is only listed. |" in page
    assert "\n`opid serve [CONFIG...]`\n" in page
    assert "each as train/&lt;campaign>. |" in page
    assert "| `--device <cpu\\|cuda>` | `cpu` | Where to train. |" in page
