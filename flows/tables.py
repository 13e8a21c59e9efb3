"""`python -m flows.tables`: docs/tables.md, every column of the tables and every field of a manifest."""

from __future__ import annotations

import ast
import inspect
from typing import Any

import pyarrow as pa

from flows.reference import table
from infra import manifest
from opid_core.schema import MEANINGS, ROWS, TABLES, VERSION

_TYPES = {"string": "text", "bool": "true or false", "float": "float32", "double": "float64"}
_RECORDS = (manifest.Manifest, manifest.FileRecord, manifest.FolderRecord)

_INTRODUCTION = f"""\
# Tables and manifests

What a campaign stores, column by column; [tables as data sets](datasets.md) shows how to read it. This page is made
from the code by `make docs`.

The tables are of version {VERSION}. A column may be null only where its type says so. What is marked *clock* depends on
the moment; all else is the same whenever config, seed and data are. Lists have one entry a token where their meaning
says nothing else. Joins go by `trajectory_id` and `step`, by `skill_id`, by `group_id` and by `task_id`.
"""


def reference() -> str:
    """The whole page in Markdown: a section a table, then what a manifest holds."""
    parts = [_INTRODUCTION]
    for name, schema in TABLES.items():
        rows = [(f"`{field.name}`", _type(field), MEANINGS[name][field.name]) for field in schema]
        parts.append(f"## `{name}`\n\nOne row is {ROWS[name]}.\n\n" + table(("column", "type", "meaning"), rows))
    parts.append(
        "## The manifest\n\n`_commits/ITERATION.json`, the commit of an iteration; "
        f"[architecture](architecture.md) says how it is made. Its format is {manifest.FORMAT}.\n"
    )
    meanings = _docstrings()
    for record in _RECORDS:
        fields = record.model_json_schema()["properties"]
        rows = [(f"`{name}`", _json_type(field), meanings[record.__name__, name]) for name, field in fields.items()]
        summary = " ".join((record.__doc__ or "").split())
        parts.append(f"### `{record.__name__}`\n\n{summary}\n\n" + table(("field", "type", "meaning"), rows))
    return "\n".join(parts)


def _type(field: pa.Field) -> str:
    of = field.type
    word = _TYPES.get(str(of), str(of))
    if pa.types.is_list(of):
        word = f"list of {_TYPES.get(str(of.value_type), str(of.value_type))}"
    return word + (", or null" if field.nullable else "") + (", *clock*" if field.metadata else "")


def _json_type(field: dict[str, Any]) -> str:
    """A field's type in words, from its JSON schema."""
    if choices := field.get("anyOf"):
        return " or ".join(_json_type(choice) for choice in choices)
    if "$ref" in field:
        return f"`{field['$ref'].rpartition('/')[2]}`"
    if field["type"] == "array":
        return f"list of {_json_type(field['items'])}" if "items" in field else "list"
    values = field.get("additionalProperties")
    return f"object of {_json_type(values)}" if isinstance(values, dict) else field["type"]


def _docstrings() -> dict[tuple[str, str], str]:
    """The docstring of each attribute in the module of manifests, by class and name."""
    return {
        (record.name, attribute.target.id): " ".join(ast.literal_eval(text.value).split())
        for record in ast.parse(inspect.getsource(manifest)).body
        if isinstance(record, ast.ClassDef)
        for attribute, text in zip(record.body, record.body[1:], strict=False)
        if isinstance(attribute, ast.AnnAssign) and isinstance(attribute.target, ast.Name)
        if isinstance(text, ast.Expr)
    }


if __name__ == "__main__":
    print(reference(), end="")
