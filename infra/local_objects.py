"""The objects of a store on a local disk: files that are created whole and durable.

Also what both kinds of store share: what a listing tells, and how a stream is copied and hashed in one reading."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import io
import math
import os
import secrets
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

from infra.names import is_link
from opid_core.errors import ConfigError, DataError, InfrastructureError, OpidError
from opid_core.reading import NotRegular, open_regular

PIECE_BYTES = 1 << 22  # in memory at a time, however large the object
NO_OBJECT = (FileNotFoundError, NotADirectoryError)
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)
_FULL = (errno.ENOSPC, errno.EDQUOT)
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
"""What file systems without hard links answer, such as exFAT, to one who has just made a file in the same folder."""


@dataclass(frozen=True)
class ObjectInfo:
    """One object of a listing."""

    path: str
    """Relative to the folder that was listed."""
    size: int
    """Bytes."""
    modified: float
    """When it was written, by the store's clock: seconds since 1970."""


def too_long(address: object, max_bytes: float) -> DataError:
    """The error for an object that is not read whole."""
    return DataError(f"{address}: longer than the {max_bytes} bytes that may stand there")


def copy_and_hash(source: BinaryIO, target: BinaryIO) -> tuple[int, str]:
    """Copy `source` to `target` in pieces; returns its size in bytes and its sha256."""
    digest, size = hashlib.sha256(), 0
    while piece := source.read(PIECE_BYTES):
        digest.update(piece)
        target.write(piece)
        size += len(piece)
    return size, digest.hexdigest()


def create_only(path: Path, data: bytes) -> bool:
    """See `infra.objects.create_only`. A temporary file is filled and synced, then linked to its name."""
    created, *ours = create_from(path, io.BytesIO(data))
    return created or digest_of(path) == (*ours,)


def create_from(path: Path, source: BinaryIO) -> tuple[bool, int, str]:
    """Create `path` from a stream unless it exists: whether we did, and size and sha256 of the stream."""
    with faults(path, "written"):
        _make_folder(path.parent)
        with _temporary(path) as temporary:
            size, sha256 = _fill(temporary, source)
            try:
                os.link(temporary, path)
            except FileExistsError:
                return False, size, sha256
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                raise ConfigError(
                    f"root: {path.parent} is on a file system without hard links ({error.strerror}), which objects are "
                    "created with; choose another root"
                ) from error
            _sync_folder(path.parent)
            return True, size, sha256


def put(path: Path, data: bytes) -> None:
    """See `infra.objects.put`."""
    with faults(path, "written"):
        _make_folder(path.parent)
        with _temporary(path) as temporary:
            _fill(temporary, io.BytesIO(data))
            os.replace(temporary, path)
            _sync_folder(path.parent)


def read(path: Path, max_bytes: int) -> bytes | None:
    """See `infra.objects.read`."""
    with faults(path, "read"):
        try:
            with open_object(path) as file:
                # Python makes room for all that is asked for, whatever there is; `max_bytes` may be a record's word.
                data = file.read(min(os.fstat(file.fileno()).st_size, max_bytes) + 1)
            if len(data) > max_bytes:
                raise too_long(path, max_bytes)
            return data
        except NO_OBJECT:
            return None


def size_of(path: Path) -> int | None:
    """See `infra.objects.size_of`."""
    with faults(path, "read"):
        try:
            return path.stat().st_size
        except NO_OBJECT:
            return None


def digest_of(path: Path, max_bytes: float = math.inf) -> tuple[int, str] | None:
    """See `infra.objects.digest_of`."""
    with faults(path, "read"):
        try:
            with open_object(path) as file:
                if os.fstat(file.fileno()).st_size > max_bytes:
                    raise too_long(path, max_bytes)
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
                return file.tell(), sha256
        except NO_OBJECT:
            return None


def list_objects(folder: Path, *, temporary: bool = False) -> list[ObjectInfo]:
    """See `infra.objects.list_objects`. With `temporary` the files that unfinished writes left instead.

    Raises DataError for a symbolic link.
    """
    listed = []
    with faults(folder, "listed"):
        for parent, folders, names in os.walk(folder, onerror=_raise_unless_gone):
            for name in folders:
                if os.path.islink(path := f"{parent}/{name}"):
                    raise is_link(path)
            for name in names:
                if (name.startswith(".") and name.endswith(".tmp")) != temporary:
                    continue
                path = Path(parent) / name
                with contextlib.suppress(FileNotFoundError):  # gone since it was listed
                    status = path.lstat()
                    if stat.S_ISLNK(status.st_mode):
                        raise is_link(path)
                    listed.append(ObjectInfo(path.relative_to(folder).as_posix(), status.st_size, status.st_mtime))
    return sorted(listed, key=lambda info: info.path)


def _raise_unless_gone(error: OSError) -> None:
    """For `os.walk`, which otherwise takes a folder that it cannot read for an empty one."""
    if not isinstance(error, NO_OBJECT):
        raise error


def open_object(path: Path) -> BufferedReader:
    """Open a file of the store for reading. Raises DataError unless it is a regular one: a pipe would never end."""
    try:
        return open_regular(path)
    except NotRegular:
        raise DataError(f"{path}: no regular file, as all objects of a store are") from None


def list_folders(folder: Path) -> list[str]:
    """See `infra.objects.list_folders`."""
    with faults(folder, "listed"):
        try:
            return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
        except NO_OBJECT:
            return []


def delete(paths: Iterable[Path]) -> None:
    """See `infra.objects.delete`. Folders left empty go too."""
    for path in paths:
        with faults(path, "deleted"):
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # the first parent that is not empty
                for parent in path.parents:
                    parent.rmdir()


@contextlib.contextmanager
def faults(path: Path, action: str) -> Iterator[None]:
    """Turn the OSErrors of the block into our errors that name `path`, which cannot be `action` (such as "read")."""
    try:
        yield
    except OSError as error:
        raise _fault(path, action, error) from error


@contextlib.contextmanager
def one_process_at_a_time(lock: Path) -> Iterator[None]:
    """In the block no other process of this machine is in such a block for the file `lock`, which is made where it is
    missing; its folder must exist."""
    while True:
        with faults(lock, "written"):
            file = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            with faults(lock, "locked"):
                fcntl.flock(file, fcntl.LOCK_EX)
            if not is_at(lock, file):  # removed while this one waited: others lock the file that is there now
                continue
            yield
            return
        finally:
            os.close(file)


def is_at(path: Path, file: int) -> bool:
    """Whether the open `file` is the one that `path` names now."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(path.lstat(), os.fstat(file))
    return False


def _fault(path: Path, action: str, error: OSError) -> OpidError:
    problem = f"{path}: cannot be {action}: {error.strerror}"
    if error.errno in _REFUSED:
        return ConfigError(f"{problem}; make it accessible and run the same command again")
    return InfrastructureError(f"{problem}; free some space" if error.errno in _FULL else problem)


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    temporary = path.parent / f".{path.name}.{secrets.token_hex(8)}.tmp"
    try:
        yield temporary
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _fill(temporary: Path, source: BinaryIO) -> tuple[int, str]:
    """Write the stream to a new file, durably (a name given to an unsynced one can outlive its bytes): size, sha256."""
    with open(temporary, "xb") as file:
        size, sha256 = copy_and_hash(source, file)
        file.flush()
        os.fsync(file.fileno())
    return size, sha256


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
