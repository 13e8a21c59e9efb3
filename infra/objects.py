"""The objects of a store, on a local disk or an S3-compatible server alike: created whole, and never changed.

The only code that touches a store is here, in `infra.local_objects` and in `infra.s3_objects`. All functions raise
InfrastructureError for a fault that may pass (a full disk, a server that is away), and ConfigError for one that only
the user can mend (no permission, refused credentials, no bucket); both name the object.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from infra import local_objects, names, s3_objects
from infra.local_objects import ObjectInfo, copy_and_hash
from infra.s3_objects import S3Address
from opid_core.errors import DataError
from opid_core.local_paths import check_root
from opid_core.reading import MAX_BYTES

Item = TypeVar("Item")
Result = TypeVar("Result")
_AT_ONCE = 8

Address = Path | S3Address
"""An object or a folder of objects; `address / name` is one below it, `str(address)` its name for messages."""


def address_of(root: str | Path, endpoint_url: str | None = None) -> Address:
    """The address of a root: a folder (also as `file:///FOLDER`) or `s3://BUCKET/PREFIX`. Raises ConfigError."""
    text = str(root)
    check_root(text, "root")
    if text.startswith("s3://"):
        bucket, _, prefix = text.removeprefix("s3://").partition("/")
        return S3Address(bucket, prefix.strip("/"), endpoint_url)
    return Path(text.removeprefix("file://")).absolute()


def address_below(folder: Address, name: str) -> Address:
    """The address of `name` in `folder`. Raises DataError where that is not below it; see `names.path_below`."""
    if isinstance(folder, Path):
        return names.path_below(folder, name)
    try:
        return folder / names.check_name(name)
    except ValueError as error:
        raise DataError(f"{folder}: no name of an object in it: {error}") from None


def create_only(address: Address, data: bytes) -> bool:
    """Create the object, whole and durable, unless it exists; whether it holds `data` now.

    Readers see all of it or nothing. Of several writers exactly one gets True, provided that each one's `data` holds
    something of its own.
    """
    return _store_of(address).create_only(address, data)


def create_file(address: Address, source: Path, copy: Path | None = None) -> tuple[bool, int, str]:
    """Create the object from a local file, read once, unless it exists: whether we did, size in bytes, sha256.

    For an object on S3, `copy` (a new local file) gets the same bytes; for a local one it must be None.
    """
    with local_objects.faults(source, "copied"), open(source, "rb") as file:
        if isinstance(address, Path):
            assert copy is None
            return local_objects.create_from(address, file)
        if copy is None:
            return s3_objects.create_from(address, file)
        with open(copy, "xb") as target:
            return s3_objects.create_from(address, file, target)


def download(address: Address, target: Path, max_bytes: float = math.inf) -> tuple[int, str] | None:
    """Copy an object to the new local file `target`: its size in bytes and sha256, or None when there is none. Of one
    on S3 no more than `max_bytes` are taken, then DataError is raised."""
    with local_objects.faults(target, "written"), open(target, "xb") as file:
        if isinstance(address, S3Address):
            return s3_objects.download(address, file, max_bytes)
        try:
            with local_objects.open_object(address) as source:
                return copy_and_hash(source, file)
        except local_objects.NO_OBJECT:
            return None


def put(address: Address, data: bytes) -> None:
    """Write the object, whole, over what is there. Only for what is no part of the record, such as a heartbeat."""
    _store_of(address).put(address, data)


def read(address: Address, max_bytes: int = MAX_BYTES) -> bytes | None:
    """The bytes of an object, or None when there is none. Raises DataError for more than `max_bytes`."""
    return _store_of(address).read(address, max_bytes)


def size_of(address: Address) -> int | None:
    """Size of an object in bytes, or None when there is none."""
    return _store_of(address).size_of(address)


def digest_of(address: Address, max_bytes: float = math.inf) -> tuple[int, str] | None:
    """Size in bytes and sha256 of an object, read in pieces, or None when there is none. Raises DataError for more than
    `max_bytes`, without reading all of it."""
    return _store_of(address).digest_of(address, max_bytes)


def list_objects(folder: Address) -> list[ObjectInfo]:
    """Every object below `folder`, sorted by path; none when there is no such folder."""
    return _store_of(folder).list_objects(folder)


def list_folders(folder: Address) -> list[str]:
    """Names of the folders directly in `folder`, sorted; a server may name some that were emptied."""
    return _store_of(folder).list_folders(folder)


def delete(addresses: Sequence[Address]) -> None:
    """Delete objects; those that are gone already are no fault."""
    local_objects.delete(a for a in addresses if isinstance(a, Path))
    s3_objects.delete(a for a in addresses if isinstance(a, S3Address))


def in_parallel(function: Callable[[Item], Result], items: Iterable[Item], at_once: int = _AT_ONCE) -> list[Result]:
    """`[function(item) for item in items]` with `at_once` calls at a time: a store is mostly waited for."""
    return list(each_in_parallel(function, items, at_once))


def each_in_parallel(
    function: Callable[[Item], Result], items: Iterable[Item], at_once: int = _AT_ONCE
) -> Iterator[Result]:
    """The results of `in_parallel`, in order, as they come."""
    if at_once == 1:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(at_once) as pool:
        yield from pool.map(function, items)


def small_at_once(folder: Address) -> int:
    """How many small objects of `folder` to read at a time. Those on a disk one by one: eight threads took six times as
    long for a thousand manifests on a busy machine, waiting for each other instead of for the disk."""
    return 1 if isinstance(folder, Path) else _AT_ONCE


def _store_of(address: Address) -> Any:
    """The module with the functions for its kind of address."""
    return local_objects if isinstance(address, Path) else s3_objects
