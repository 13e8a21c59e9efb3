"""What commands write where the user says: whole or not at all, and refused before the work where it cannot be."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from infra.local_objects import faults
from opid_core.errors import ConfigError


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `out` when the block succeeds and is removed when it does not.

    Raises ConfigError where `out` exists or cannot be made.
    """
    if os.path.exists(out):
        raise ConfigError(f"--out: {out} exists already; name a new folder")
    temporary = out.absolute().parent / f".{out.name}.{secrets.token_hex(8)}.tmp"
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        raise ConfigError(f"--out: {out} cannot be made: {error.strerror}; name another folder") from None
    try:
        yield temporary
        if os.path.exists(out):
            raise ConfigError(f"--out: {out} was made by another program meanwhile; name a new folder")
        with faults(out, "written"):
            temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
