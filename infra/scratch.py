"""Working folders on the local disk that a crash does not leave behind for ever."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from infra.local_objects import faults, is_at, one_process_at_a_time


def make_scratch_folder() -> Path:
    """A new empty folder, readable by this user alone; those of processes of this machine that are gone are removed
    first, and the files of locks that such held. Its name cannot be guessed, so nobody can have made it before; names
    like it that another user made, links and other files, and the folders of other machines (whose process ids say
    nothing here) are left alone."""
    temporary, prefix = Path(tempfile.gettempdir()), _prefix()
    with faults(temporary, "written"):
        for left in temporary.glob(f"{prefix}*"):
            owner = left.name.removeprefix(prefix).split("-")[0]
            if owner.isdigit() and not psutil.pid_exists(int(owner)) and _is_our_folder(left):
                shutil.rmtree(left, ignore_errors=True)
            elif owner == "lock":
                _remove_unless_held(left)
        return Path(tempfile.mkdtemp(prefix=f"{prefix}{os.getpid()}-", dir=temporary))


def others_scratch(name: str) -> Path | None:
    """The folder `name` in a scratch folder of this user that any process of this machine has made."""
    for path in Path(tempfile.gettempdir()).glob(f"{_prefix()}*/{name}"):
        if _is_our_folder(path.parents[name.count("/")]):
            return path
    return None


@contextmanager
def scratch_lock(key: str) -> Iterator[None]:
    """In the block no other process of this machine is in such a block for `key`, which others must not be able to
    guess: whoever holds the lock keeps all that ask for it waiting. A process that is killed leaves an empty file,
    which the next `make_scratch_folder` removes."""
    path = Path(tempfile.gettempdir(), f"{_prefix()}lock-{key}")
    with one_process_at_a_time(path):
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _remove_unless_held(lock: Path) -> None:
    with suppress(OSError):  # held, another user's, a link, or just removed
        file = os.open(lock, os.O_RDWR | os.O_NOFOLLOW)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if is_at(lock, file):  # else another process has removed it and a third one may hold its successor
                lock.unlink()
        finally:
            os.close(file)


def _prefix() -> str:
    """Of the names in the temporary folder, which several machines may share."""
    return f"opid-{hashlib.sha256(_this_machine().encode()).hexdigest()[:8]}-"


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
