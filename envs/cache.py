"""What environments compute once a machine: folders under `$OPID_CACHE`, and records in memory-mapped files.

A folder appears whole or not at all: it is written under a name of its own and then renamed. Of two processes that
build the same folder at once the first to finish wins, and both use its result.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from opid_core.errors import ConfigError, DataError
from opid_core.local_paths import cache_folder

_LISTING = "contents.json"


def build_once(environment: str, name: str, key: Mapping[str, object], build: Callable[[Path], None]) -> Path:
    """The folder that `key` (anything JSON) describes; where there is none, `build` writes its files to an empty one.

    `key` holds all that the contents depend on: a hash of the input, settings, a version; `name` is for people to
    read. Raises ConfigError for a cache that cannot be written, DataError for a folder whose files were changed
    afterwards; errors of `build` leave nothing behind.
    """
    text = json.dumps(key, sort_keys=True)
    root = cache_folder() / environment
    folder = root / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:32]}"
    if not folder.is_dir():
        try:
            _build(folder, text, build)
        except OSError as error:
            if not folder.is_dir():  # else another process was faster, with the same files
                raise ConfigError(f"OPID_CACHE: cannot write to {root}: {error}") from None
    _check(folder)
    return folder


def cached_folder(environment: str, name: str, build: Callable[[Path], None]) -> Path:
    """`build_once` of the folder `name`, anew for every version of the environment's source: what older code built is
    never read, whatever the change was."""
    return build_once(environment, name, {"name": name, "code": _code_version(environment)}, build)


@functools.cache
def _code_version(environment: str) -> str:
    digest = hashlib.sha256()
    for path in (Path(__file__), *sorted((Path(__file__).parent / environment).glob("*.py"))):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _build(folder: Path, key: str, build: Callable[[Path], None]) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        build(draft)
        files = sorted(path for path in draft.rglob("*") if path.is_file())
        sizes = {str(file.relative_to(draft)): file.stat().st_size for file in files}
        (draft / _LISTING).write_text(json.dumps({"key": key, "sizes": sizes}), encoding="utf-8")
        for file in (*files, draft / _LISTING):  # on the disk before the folder has its name
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
        draft.chmod(0o755)  # `mkdtemp` makes it unreadable for other users
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _check(folder: Path) -> None:
    try:
        sizes = json.loads((folder / _LISTING).read_text(encoding="utf-8"))["sizes"]
        damaged = [name for name, size in sizes.items() if (folder / name).stat().st_size != size]
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{folder}: damaged ({error}); remove this folder, it will be built again") from None
    if damaged:
        raise DataError(f"{folder}: damaged ({damaged[0]}); remove this folder, it will be built again")


def write_records(folder: Path, name: str, records: Iterable[Any]) -> int:
    """Write `records` (anything JSON) one after the other, with the offset of each; returns how many there are."""
    offsets = [0]
    with open(folder / f"{name}.json", "wb") as file:
        for record in records:
            offsets.append(offsets[-1] + file.write(json.dumps(record, separators=(",", ":")).encode()))
    np.save(folder / f"{name}_offsets.npy", np.array(offsets, np.int64))
    return len(offsets) - 1


def load_array(folder: Path, name: str) -> np.ndarray:
    """The array that `np.save` wrote to `name`.npy, memory-mapped, read-only."""
    return np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r"))


class Records:
    """The records that `write_records` wrote, read on demand from memory-mapped files that all processes share."""

    def __init__(self, folder: Path, name: str) -> None:
        self._offsets = load_array(folder, f"{name}_offsets")
        path = folder / f"{name}.json"
        self._bytes = np.asarray(np.memmap(path, np.uint8, "r")) if path.stat().st_size else np.zeros(0, np.uint8)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, index: int) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return json.loads(self._bytes[self._offsets[index] : self._offsets[index + 1]].tobytes())
