"""The store of one campaign: immutable objects in a folder, and a chain of create-only manifests that makes them count.

    <root>/<campaign>/config.json                                    created once
    <root>/<campaign>/<table>/iteration=000003/<attempt>/part-0.parquet
    <root>/<campaign>/policies/000004/<attempt>/...
    <root>/<campaign>/_commits/start.json, 000000.json, ...          the commits: create-only

Readers follow manifests only, never listings: an object that no manifest names does not exist.
All I/O on objects goes through `infra.objects`.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import secrets
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from infra.manifest import START, FileRecord, FolderRecord, Manifest, from_bytes, to_bytes
from infra.objects import create_only, read, sha256_of, size_of
from opid_core import schema
from opid_core.errors import ConfigError, DataError, GateError

MAY_DIFFER = ("iterations", "tracking", "root")
"""Config keys that may change between runs of one campaign: it may be extended, tracked elsewhere, and moved."""


@dataclass(frozen=True)
class CampaignStore:
    """Where one campaign lies. Made by `open_campaign` (to write) or `find_campaign` (to read)."""

    root: Path
    campaign: str

    @property
    def folder(self) -> Path:
        return self.root / self.campaign


# Campaigns --------------------------------------------------------------------------------------------------------


def check_writable(root: str | Path, needed_bytes: int) -> None:
    """Raise ConfigError unless `root` can be made or written and its disk has `needed_bytes` free. Touches nothing."""
    path = Path(root).absolute()
    # os.path.exists, not Path.exists: behind a folder that may not be entered it says False instead of raising.
    existing = next(parent for parent in (path, *path.parents) if os.path.exists(parent))
    if not existing.is_dir():
        raise ConfigError(f"root: {existing} is not a folder; choose another root")
    if not os.access(existing, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
        raise ConfigError(f"root: no permission to write in {existing}; choose another root")
    free = shutil.disk_usage(existing).free
    if free < needed_bytes:
        raise ConfigError(
            f"root: {existing} has {free / 2**20:.0f} MiB free, the campaign needs {needed_bytes / 2**20:.0f} MiB; "
            "free some space or choose another root"
        )


def open_campaign(root: str | Path, campaign: str, config_json: Mapping[str, Any]) -> CampaignStore:
    """The store of `campaign`, created with its config when it is new.

    Raises ConfigError when the root cannot be written, or when the campaign exists with another config (the keys of
    `MAY_DIFFER` aside): each differing key is shown with both values.
    """
    store = CampaignStore(Path(root).absolute(), campaign)
    check_writable(store.folder, 0)
    given = json.loads(json.dumps(config_json))
    path = store.folder / "config.json"
    if read(path) is None and create_only(path, (json.dumps(given, indent=2, ensure_ascii=False) + "\n").encode()):
        return store
    stored_values, given_values = _flatten(read_config(store)), _flatten(given)
    differing = [
        f"  {key}: stored {_show(stored_values, key)}, given {_show(given_values, key)}"
        for key in sorted({*stored_values, *given_values})
        if key.split(".")[0] not in MAY_DIFFER and _show(stored_values, key) != _show(given_values, key)
    ]
    if differing:
        raise ConfigError(
            f"campaign: {campaign!r} exists in {store.root} with another config:\n"
            + "\n".join(differing)
            + "\nchoose another campaign name, or set the stored values to continue it"
        )
    return store


def find_campaign(root: str | Path, campaign: str) -> CampaignStore:
    """The store of a campaign that exists. Raises ConfigError that lists those that do; touches nothing."""
    store = CampaignStore(Path(root).absolute(), campaign)
    if not (store.folder / "config.json").is_file():
        names = sorted(path.parent.name for path in store.root.glob("*/config.json"))
        known = f"campaigns there: {', '.join(names)}" if names else "there is no campaign there"
        raise ConfigError(f"campaign: no campaign {campaign!r} in {store.root}; {known}")
    return store


def read_config(store: CampaignStore) -> dict[str, Any]:
    """The config that the campaign was created with, as plain data. Raises DataError that names the file."""
    path = store.folder / "config.json"
    try:
        config = json.loads(read(path) or b"")
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(config, dict):
        raise DataError(f"{path}: expected a JSON object, got {type(config).__name__}")
    return config


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    return {
        key: leaf
        for name, nested in value.items()
        for key, leaf in _flatten(nested, f"{prefix}.{name}" if prefix else name).items()
    }


def _show(values: Mapping[str, Any], key: str) -> str:
    return json.dumps(values[key], ensure_ascii=False) if key in values else "(absent)"


# Tables and folders -----------------------------------------------------------------------------------------------


def new_attempt() -> str:
    """A fresh attempt id: sorts by time (UTC, milliseconds), unique by 48 random bits; no part of any content."""
    now = time.time_ns() // 1_000_000
    return f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime(now / 1000))}{now % 1000:03d}-{secrets.token_hex(6)}"


def key_of(iteration: int | Literal["start"]) -> str:
    """Name of an iteration in paths: six digits, or `start`."""
    return START if iteration == START else f"{iteration:06d}"


def write_table(
    store: CampaignStore, name: str, iteration: int | Literal["start"], attempt: str, table: pa.Table
) -> FileRecord:
    """Write `table` as the part of table `name` of this attempt: Parquet, the same bytes for the same rows.

    Raises DataError for columns other than `schema.TABLES[name]`'s, for nulls where none may be, and when the part
    exists with other bytes: objects are immutable.
    """
    table = _conform(name, table)
    floats = [f"{f.name}.list.element" for f in table.schema if f.name in schema.LOG_PROB_COLUMNS]
    others = [f.name + (".list.element" if pa.types.is_list(f.type) else "") for f in table.schema]
    encodings: dict[str, Any] = {
        "use_byte_stream_split": floats or False,
        "use_dictionary": [column for column in others if column not in floats],
    }
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", compression_level=3, **encodings)
    data = sink.getvalue()
    path = f"{name}/iteration={key_of(iteration)}/{attempt}/part-0.parquet"
    _create_new(store, path, data)
    return FileRecord(
        path=path,
        size=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        rows=table.num_rows,
        schema_version=schema.VERSION,
        content_hash=schema.content_hash(table),
    )


def read_table(store: CampaignStore, record: FileRecord) -> pa.Table:
    """The table of a record. Raises DataError that names the object when it is missing, damaged, of another schema
    version, or no table of ours."""
    path = store.folder / record.path
    if record.schema_version != schema.VERSION:
        raise DataError(
            f"{path}: written with table schema version {record.schema_version}, this program reads version "
            f"{schema.VERSION}; use the version of OPID that wrote it (see `code_version` in the manifest)"
        )
    data = read(path)
    if data is None:
        raise _missing(path)
    _check_object(path, record, len(data), hashlib.sha256(data).hexdigest())
    return _conform(record.path.split("/")[0], pq.read_table(pa.BufferReader(data)))


def put_folder(store: CampaignStore, local_folder: str | Path, uri: str) -> FolderRecord:
    """Copy all files of `local_folder` to `uri` (such as `policies/000004/<attempt>`), in sorted order.

    Raises DataError when the folder holds no file, or when an object exists with other bytes.
    """
    local = Path(local_folder)
    names = sorted(path.relative_to(local).as_posix() for path in local.rglob("*") if path.is_file())
    if not names:
        raise DataError(f"{local}: no files to store")
    records = []
    for name in names:
        with open(local / name, "rb") as file:
            _create_new(store, f"{uri}/{name}", file)
        path = store.folder / uri / name
        records.append(FileRecord(path=f"{uri}/{name}", size=size_of(path) or 0, sha256=sha256_of(path) or ""))
    return FolderRecord(uri=uri, files=tuple(records))


def folder_path(store: CampaignStore, folder: FolderRecord, *, verify: bool = False) -> Path:
    """A local folder to read `folder` from. Raises DataError that names a missing file or one of another size; with
    `verify` also one of another sha256."""
    for record in folder.files:
        path = store.folder / record.path
        _check_object(path, record, size_of(path), sha256_of(path) if verify else record.sha256)
    return store.folder / folder.uri


def _create_new(store: CampaignStore, path: str, source: bytes | io.BufferedIOBase) -> None:
    target = store.folder / path
    if create_only(target, source):
        return
    stream = io.BytesIO(source) if isinstance(source, bytes) else source
    stream.seek(0)
    if sha256_of(target) != hashlib.file_digest(stream, "sha256").hexdigest():  # a retry may write the same again
        raise DataError(f"{target}: exists with other bytes, and objects are immutable; write under a new attempt")


def _conform(name: str, table: pa.Table) -> pa.Table:
    """`table` in one chunk, with exactly the schema of table `name` (its metadata too)."""
    if name not in schema.TABLES:
        raise DataError(f"table {name!r}: unknown; known tables: {', '.join(schema.TABLES)}")
    expected = schema.TABLES[name]
    if table.schema.names != expected.names:
        raise DataError(f"table {name}: expected columns {expected.names}, got {table.schema.names}")
    for field in expected:
        column = table.column(field.name)
        if column.type != field.type:
            raise DataError(f"table {name}, column {field.name}: expected {field.type}, got {column.type}")
        if not field.nullable and column.null_count:
            raise DataError(f"table {name}, column {field.name}: {column.null_count} nulls where none are allowed")
    return table.cast(expected).combine_chunks()


def _missing(path: Path) -> DataError:
    return DataError(f"{path}: missing, although a record names it")


def _check_object(path: Path, record: FileRecord, size: int | None, sha256: str | None) -> None:
    if size is None:
        raise _missing(path)
    if size != record.size:
        raise DataError(f"{path}: {size} bytes, its record says {record.size}")
    if sha256 != record.sha256:
        raise DataError(f"{path}: damaged: sha256 {sha256}, its record says {record.sha256}")


# Commits ----------------------------------------------------------------------------------------------------------


def commit(store: CampaignStore, manifest: Manifest) -> tuple[Manifest, bool]:
    """Make `manifest`'s iteration exist, once: the manifest that stands, and whether it is this one.

    A loser adopts the winner's manifest. Raises GateError for a manifest with a failed gate; DataError when an object
    it names is missing, or when it does not follow the manifest that stands before it.
    """
    failed = [gate.table for gate in manifest.gates.values() if not gate.passed]
    if failed:
        raise GateError(f"iteration {manifest.iteration}: not committed, the gates of {', '.join(failed)} failed")
    for record in objects(manifest):
        path = store.folder / record.path
        _check_object(path, record, size_of(path), record.sha256)
    previous = None
    if manifest.iteration != START:
        chain = manifests(store)
        position = manifest.iteration
        if len(chain) <= position:
            raise DataError(f"iteration {manifest.iteration}: not committed, the iteration before it is not")
        previous = chain[position]
    path = _manifest_path(store, manifest.iteration)
    data = to_bytes(manifest)
    from_bytes(data, f"iteration {manifest.iteration}, not committed", previous)
    if create_only(path, data):
        return manifest, True
    standing = read(path)
    if standing is None:
        raise DataError(f"{path}: removed while it was being committed")
    return from_bytes(standing, str(path), previous), False


def manifests(store: CampaignStore) -> list[Manifest]:
    """The chain: start, 0, 1, ... up to the first missing one. Raises DataError that names the first manifest that
    was changed or does not follow the one before."""
    chain: list[Manifest] = []
    while True:
        iteration = next_iteration(chain)
        path = _manifest_path(store, iteration)
        data = read(path)
        if data is None:
            return chain
        manifest = from_bytes(data, str(path), chain[-1] if chain else None)
        if manifest.iteration != iteration:
            raise DataError(f"{path}: holds the manifest of iteration {manifest.iteration}")
        chain.append(manifest)


def next_iteration(chain: Sequence[Manifest]) -> int | Literal["start"]:
    """The iteration to run after `chain`."""
    return len(chain) - 1 if chain else START


def objects(manifest: Manifest) -> list[FileRecord]:
    """Every file that a manifest names."""
    return [*manifest.tables.values(), *manifest.policy.files]


def verify(store: CampaignStore) -> int:
    """Re-hash every file of the chain and say how many there are. Raises DataError that names the first bad one."""
    records = [record for manifest in manifests(store) for record in objects(manifest)]
    for record in records:
        path = store.folder / record.path
        _check_object(path, record, size_of(path), sha256_of(path))
    return len(records)


def _manifest_path(store: CampaignStore, iteration: int | Literal["start"]) -> Path:
    return store.folder / "_commits" / f"{key_of(iteration)}.json"
