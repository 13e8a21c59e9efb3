"""Working folders on the local disk that a crash does not leave behind for ever."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from infra.local_objects import faults

_PREFIX = "opid-"


def make_scratch_folder() -> Path:
    """A new empty folder, readable by this user alone; those of processes of this machine that are gone are removed
    first. Its name cannot be guessed, so nobody can have made it before; names like it that another user made, links
    and files, and the folders of other machines (whose process ids say nothing here) are left alone."""
    machine = hashlib.sha256(_this_machine().encode()).hexdigest()[:8]
    temporary, prefix = Path(tempfile.gettempdir()), f"{_PREFIX}{machine}-"
    with faults(temporary, "written"):
        for left in temporary.glob(f"{prefix}*"):
            owner = left.name.removeprefix(prefix).split("-")[0]
            if owner.isdigit() and not psutil.pid_exists(int(owner)) and _is_our_folder(left):
                shutil.rmtree(left, ignore_errors=True)
        return Path(tempfile.mkdtemp(prefix=f"{prefix}{os.getpid()}-", dir=temporary))


def others_scratch(name: str) -> Path | None:
    """The folder `name` in a scratch folder of this user that any process of this machine has made."""
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*/{name}"):
        if _is_our_folder(path.parents[name.count("/")]):
            return path
    return None


def _is_our_folder(path: Path) -> bool:
    try:
        status = path.lstat()
    except OSError:  # another process has just removed it
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()


def _this_machine() -> str:
    """Boot and process-id namespace: where they are equal, process ids can be compared. Two containers differ."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {os.readlink('/proc/self/ns/pid')}"


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """`make_scratch_folder`, removed at the end."""
    folder = make_scratch_folder()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
