"""The objects of a store: the only code that touches its disk. Objects are created whole and never change."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import secrets
import shutil
from pathlib import Path

from opid_core.errors import InfrastructureError

_CHUNK_BYTES = 1 << 22


def create_only(path: Path, source: bytes | io.BufferedIOBase) -> bool:
    """Create the object `path` from bytes or a stream, whole and durable, unless it exists; say whether we did.

    A reader sees all of it or nothing: a temporary file is filled and synced, then linked to its name. Raises
    InfrastructureError that names the object when the disk is full, gone or read-only.
    """
    temporary = path.parent / f".{path.name}.{secrets.token_hex(8)}.tmp"
    try:
        _make_folder(path.parent)
        with open(temporary, "xb") as file:
            shutil.copyfileobj(io.BytesIO(source) if isinstance(source, bytes) else source, file, _CHUNK_BYTES)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        _sync_folder(path.parent)
        return True
    except OSError as error:
        raise InfrastructureError(f"{path}: cannot be written: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def read(path: Path) -> bytes | None:
    """The bytes of an object, or None when there is none."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def size_of(path: Path) -> int | None:
    """Size of an object in bytes, or None when there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


def sha256_of(path: Path) -> str | None:
    """sha256 of an object, read in pieces, or None when there is none."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return None


def _make_folder(folder: Path) -> None:
    """Create `folder` and its parents, durably: a synced file in an unsynced folder can vanish with the power."""
    missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for created in missing:
        _sync_folder(created.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
