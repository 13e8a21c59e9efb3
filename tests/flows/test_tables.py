"""docs/tables.md, made from the schemas of tables and manifests."""

from __future__ import annotations

from pathlib import Path

from flows.tables import MEANINGS, ROWS, reference
from opid_core.schema import TABLES

PAGE = Path(__file__).parents[2] / "docs" / "tables.md"


def test_the_committed_page_is_what_the_schemas_say():
    assert PAGE.read_text(encoding="utf-8") == reference(), "docs/tables.md is out of date: run `make docs`"


def test_every_meaning_is_of_a_column():
    columns = {name for schema in TABLES.values() for name in schema.names}
    columns |= {f"{table}.{name}" for table, schema in TABLES.items() for name in schema.names}
    assert {*MEANINGS} <= columns
    assert {*ROWS} == {*TABLES}


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
