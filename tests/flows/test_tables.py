"""docs/tables.md, made from the schemas of tables and manifests."""

from __future__ import annotations

from pathlib import Path

from flows.tables import reference

PAGE = Path(__file__).parents[2] / "docs" / "tables.md"


def test_the_committed_page_is_what_the_schemas_say():
    assert PAGE.read_text(encoding="utf-8") == reference(), "docs/tables.md is out of date: run `make docs`"


def test_rows_of_each_kind():
    page = reference()
    assert "| `seed` | int64 | Of the response's sampling. |" in page
    assert "| `seed` | int64 | Of the episode. |" in page
    assert "| `rollout_log_probs` | list of float32 | Of the response's tokens, by the engine that sampled" in page
    assert "| `seconds` | float32, *clock* | How long the episode took. |" in page
    assert "| `seconds` | float32, or null, *clock* | How long the analysis took. |" in page
    assert "| `tables` | object of `FileRecord` | The iteration's part of each table, by the table's name. |" in page
    assert "| `prev` | string or null | sha256 of the previous manifest's bytes; null at the start. |" in page
    assert "| `files` | list of `FileRecord` |" in page
