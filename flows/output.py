"""What commands write where the user says: whole or not at all, and refused before the work where it cannot be."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from infra.local_objects import faults
from opid_core.errors import ConfigError


def make_folder(folder: Path, option: str = "--out") -> Path:
    """`folder`, made with its parents unless it is there. Raises ConfigError where it cannot be made."""
    _make(folder, folder, option)
    return folder


def check_new_file(out: Path) -> None:
    """Raise ConfigError unless the result of a command can be written to the file `out`."""
    if os.path.exists(out):
        raise ConfigError(f"--out: {out} exists already; name a new file")
    if not os.path.isdir(out.parent):
        raise ConfigError(f"--out: {out.parent} is no folder")
    try:
        with tempfile.TemporaryFile(dir=out.parent):
            pass
    except OSError as error:
        raise ConfigError(f"--out: {out} cannot be made: {error.strerror}; name another file") from None


def write_file(out: Path, text: str) -> None:
    """Write `text` to the file `out`, whole or not at all. Raises InfrastructureError or ConfigError that names it."""
    unfinished = out.with_name(out.name + ".unfinished")
    with faults(out, "written"):
        unfinished.write_text(text, encoding="utf-8")
        unfinished.rename(out)


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `out` when the block succeeds and is removed when it does not.

    Raises ConfigError where `out` exists or cannot be made.
    """
    if os.path.exists(out):
        raise ConfigError(f"--out: {out} exists already; name a new folder")
    temporary = out.absolute().parent / f".{out.name}.{secrets.token_hex(8)}.tmp"
    _make(temporary, out, "--out")
    try:
        yield temporary
        if os.path.exists(out):
            raise ConfigError(f"--out: {out} was made by another program meanwhile; name a new folder")
        with faults(out, "written"):
            temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _make(folder: Path, named: Path, option: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{option}: {named} cannot be made: {error.strerror}; name another folder") from None
