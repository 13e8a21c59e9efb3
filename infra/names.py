"""Names in a store: which may stand in a manifest, a stage record or a note, and where they lead on a disk.

What is stored is not trusted: whoever can write to a store could name a file outside of it. So a name is checked where
it is parsed (`StoredName`), and again wherever it becomes an address (`path_below`).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from opid_core.errors import DataError

_MAX_BYTES, _MAX_PART_BYTES = 1024, 255
"""The longest key of S3, and the longest name of a file on Linux."""
_NO_PART = frozenset(("", ".", ".."))


def is_one_folder(name: str) -> bool:
    """Whether `name` is that of one folder, as of a campaign or a study: no path, and not the folder above."""
    return "/" not in name and name not in ("", ".", "..")


def check_name(name: str) -> str:
    """`name` where it leads to a place below the folder that it is relative to. Raises ValueError."""
    parts = name.split("/")
    if not name.isprintable() or not _NO_PART.isdisjoint(parts):
        raise ValueError(f"{name!r} is no relative path in its shortest form, of printable characters")
    size = len(name.encode())
    # Most names are shorter than a part may be, and a long chain has tens of thousands.
    if size > _MAX_PART_BYTES and (size > _MAX_BYTES or any(len(part.encode()) > _MAX_PART_BYTES for part in parts)):
        raise ValueError(f"a path of {len(name)} characters is too long")
    return name


def _check_table(name: str) -> str:
    from opid_core import schema  # pyarrow, which whoever only wants a scratch folder need not wait for

    if name not in schema.TABLES:
        raise ValueError(f"{name!r} is no table; known tables: {', '.join(schema.TABLES)}")
    return name


StoredName = Annotated[str, AfterValidator(check_name)]
"""The path of an object or folder, relative to the campaign's folder."""
TableName = Annotated[str, AfterValidator(_check_table)]


def path_below(folder: Path, name: str) -> Path:
    """The path that `name` leads to from `folder`. Raises DataError where that is not below it, or leads through a
    symbolic link: a store holds none, and what one points to is no part of it."""
    try:
        path = str(folder)
        for part in check_name(name).split("/"):
            path = f"{path}/{part}"
            if os.path.islink(path):
                raise is_link(path)
    except ValueError as error:
        raise DataError(f"{folder}: no name of an object in it: {error}") from None
    return Path(path)


def is_link(path: str | Path) -> DataError:
    """The error for a symbolic link in a store."""
    return DataError(
        f"{path}: a symbolic link, which no store holds, and which is not followed; put what it points to in its place"
    )
