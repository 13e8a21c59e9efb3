"""Folders in a store, such as policies, and the local cache through which those on S3 are read.

The cache (`$OPID_CACHE`, or `~/.cache/opid`) is shared by all processes, and may be deleted at any time: whatever lies
there, each file is hashed before a folder is used.
"""

from __future__ import annotations

import collections
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from infra import local_objects, objects
from infra.campaigns import CampaignStore, local_name
from infra.manifest import FileRecord, FolderRecord, kind_of
from infra.names import path_below
from infra.tables import check_object, exists_already
from opid_core.errors import DataError, OpidError
from opid_core.local_paths import cache_folder

CACHED_FOLDERS = 4
"""Folders of a campaign that the cache keeps: those used last."""
_ABANDONED_S = 86400.0  # a folder that nobody has filled for a day is that of a killed process

_given: collections.deque[Path] = collections.deque(maxlen=CACHED_FOLDERS)


def put_folder(store: CampaignStore, local: str | Path, uri: str, *, without: str | None = None) -> FolderRecord:
    """Copy all files of the folder `local`, but for those in its folder `without` and those with a name that begins
    with a dot (`.git`, `.DS_Store`), to `uri` (such as `policies/000004/<attempt>`); each is read once.

    On S3 the folder is in the cache afterwards. Raises DataError when the folder holds no file, or when an object
    exists with other bytes.
    """
    source = Path(local)
    names = [name for name in _names(source) if without is None or not name.startswith(f"{without}/")]
    if not names:
        raise DataError(f"{source}: no files to store")
    if isinstance(store.address(), Path):
        files = objects.in_parallel(lambda name: _put_file(store, source / name, f"{uri}/{name}", None), names)
    else:
        with _filling(_cached(store, uri)) as copy:
            for name in names:
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
            files = objects.in_parallel(
                lambda name: _put_file(store, source / name, f"{uri}/{name}", copy / name), names
            )
        _used(store, _cached(store, uri))
    return FolderRecord(uri=uri, files=tuple(files))


def put_part(store: CampaignStore, local: str | Path, uri: str, part: str) -> tuple[FileRecord, ...]:
    """Copy the files of the folder `part` in the folder `local` to the same place in `uri`, of which others may read
    the rest meanwhile; each is read once. Returns their records: none where there is no file.

    On S3 they are in the cache afterwards. Raises DataError as `put_folder` does.
    """
    source = Path(local)

    def put(name: str) -> FileRecord:
        if isinstance(store.address(), Path):
            return _put_file(store, source / name, f"{uri}/{name}", None)
        copy = _cached(store, uri) / name
        with local_objects.faults(copy, "written"):
            copy.parent.mkdir(parents=True, exist_ok=True)
        return _put_file(store, source / name, f"{uri}/{name}", copy)

    return tuple(objects.in_parallel(put, [name for name in _names(source) if name.startswith(f"{part}/")]))


def folder_path(store: CampaignStore, folder: FolderRecord) -> Path:
    """A local folder to read `folder` from, all of whose files were hashed; one on S3 is downloaded into the cache.

    Raises DataError that names a file that is missing, damaged or unnamed: what reads a policy takes all the weights,
    or all the optimizer state, that it finds. (Where `folder` names none of these, because nobody is to read them, they
    may lie there.)
    """
    address = store.address(folder.uri)
    if isinstance(address, Path):
        _check(address, folder)
        return address
    path = _cached(store, folder.uri)
    try:
        _check(path, folder)
    except DataError:  # not there, evicted meanwhile, or spoilt by a full disk or a hand: the store has it
        with _filling(path) as new:
            objects.in_parallel(lambda record: _fetch(store, record, path, new, folder.name_of(record)), folder.files)
            _remove(path)
    _used(store, path)
    return path


def shared_folder_path(store: CampaignStore, folder: FolderRecord) -> Path:
    """`folder_path`, by one process of this machine at a time: the first downloads, the others find it in the cache."""
    if isinstance(store.address(), Path):
        return folder_path(store, folder)
    base = _cached(store, "")
    with local_objects.faults(base, "written"):
        base.mkdir(parents=True, exist_ok=True)
    with local_objects.one_process_at_a_time(base / ".lock"):
        return folder_path(store, folder)


def _names(folder: Path) -> list[str]:
    """The files in `folder`, but for those below a name that begins with a dot, sorted."""
    paths = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    return sorted(path.as_posix() for path in paths if not any(part.startswith(".") for part in path.parts))


def _put_file(store: CampaignStore, source: Path, path: str, copy: Path | None) -> FileRecord:
    address = store.address(path)
    created, size, sha256 = objects.create_file(address, source, copy)
    if not created and objects.digest_of(address) != (size, sha256):  # a retry may write the same again
        raise exists_already(address)
    return FileRecord(path=path, size=size, sha256=sha256)


def _fetch(store: CampaignStore, record: FileRecord, old: Path, new: Path, name: str) -> None:
    """Put a file into the folder `new`: from the folder `old` where it is whole there, else from the store."""
    target = new / name
    with local_objects.faults(target, "written"):
        target.parent.mkdir(parents=True, exist_ok=True)
    with suppress(OpidError, OSError):
        check_object(old / name, record, objects.digest_of(old / name, record.size))
        os.link(old / name, target)
        return
    address = store.address(record.path)
    check_object(address, record, objects.download(address, target, record.size))


def _check(path: Path, folder: FolderRecord) -> None:
    """Raise DataError unless every file of `folder` is whole in the folder `path`, and no other one of their kind is
    there."""

    def check(record: FileRecord) -> None:
        file = path_below(path, folder.name_of(record))
        check_object(file, record, objects.digest_of(file, record.size))

    objects.in_parallel(check, folder.files)
    named = {folder.name_of(record) for record in folder.files}
    kinds = {kind_of(name) for name in named}
    for info in objects.list_objects(path):
        other = info.path not in named and kind_of(info.path) in kinds
        if other and not re.search(r"(^|/)\.(nfs[0-9a-f]+|DS_Store)$", info.path):  # those nobody reads
            raise DataError(f"{path / info.path}: no manifest names it, so it must not lie there; remove it")


# The cache --------------------------------------------------------------------------------------------------------


def _cached(store: CampaignStore, uri: str) -> Path:
    return cache_folder().absolute() / local_name(store.root, store.campaign, store.endpoint_url) / uri


@contextmanager
def _filling(path: Path) -> Iterator[Path]:
    """A new folder that becomes `path` when the block succeeds and no other process was faster."""
    temporary = path.parent / f".{path.name}.{secrets.token_hex(8)}.tmp"
    try:
        with local_objects.faults(path, "written"):
            temporary.mkdir(parents=True)
            yield temporary
            _rename(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _rename(source: Path, target: Path) -> None:
    try:
        source.rename(target)
    except OSError:
        if not target.is_dir():  # anything but a folder that another process filled meanwhile
            raise


def _used(store: CampaignStore, path: Path) -> None:
    """Note that `path` is in use, and evict what has not been used for longest."""
    with suppress(FileNotFoundError):
        os.utime(path)
    if path in _given:
        _given.remove(path)
    _given.append(path)
    base = _cached(store, "")
    with local_objects.faults(base, "listed"):
        ages: dict[Path, float] = {}
        for folder in base.glob("*/*/*"):
            with suppress(FileNotFoundError):  # evicted by another process
                ages[folder] = folder.stat().st_mtime
    whole = sorted((folder for folder in ages if not folder.name.startswith(".")), key=lambda folder: -ages[folder])
    for folder in whole[CACHED_FOLDERS:]:
        if folder not in _given:
            _remove(folder)
    for folder, modified in ages.items():
        if folder.name.startswith(".") and modified < time.time() - _ABANDONED_S:
            shutil.rmtree(folder, ignore_errors=True)


def _remove(path: Path) -> None:
    """Remove a cached folder; under another name first, so that nobody finds a part of it."""
    gone = path.parent / f".{path.name}.{secrets.token_hex(8)}.tmp"
    with suppress(FileNotFoundError, NotADirectoryError):
        path.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
