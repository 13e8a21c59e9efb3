"""Orphans: objects that killed or losing attempts left. No reader sees them; they only take space."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from infra import local_objects
from infra import objects as storage
from infra.object_types import ObjectInfo
from infra.store import (
    CampaignStore,
    given_up,
    key_of,
    list_objects,
    location,
    manifests,
    next_iteration,
    objects,
    read_object,
)
from opid_core import schema
from opid_core.errors import DataError


def orphans(store: CampaignStore, older_than_s: float) -> list[ObjectInfo]:
    """Parts of tables and policies, and temporary files of killed writes, that nothing names: no manifest (optimizer
    states that were given up count as unnamed), and no stage record of the iteration that comes next. Only those last
    written more than `older_than_s` seconds ago, by the store's clock: a running attempt's newest objects are not named
    yet.

    Raises DataError for a damaged manifest or stage record: what it would have named is not known.
    """
    # First the listing, then what names it: an object that is committed between the two is seen as named.
    found = [info for folder in (*schema.TABLES, "policies") for info in list_objects(store, folder)]
    folder = store.address()
    if isinstance(folder, Path):
        found += local_objects.list_objects(folder, temporary=True)
    chain = manifests(store)
    named = {record.path for manifest in chain for record in objects(manifest)} - given_up(store)
    for record in list_objects(store, f"_stages/{key_of(next_iteration(chain))}"):
        named.update(_paths_in(_stage_record(store, record.path)))
    newest = time.time() - older_than_s
    return sorted(
        (info for info in found if info.path not in named and info.modified < newest), key=lambda info: info.path
    )


def delete(store: CampaignStore, found: Sequence[ObjectInfo]) -> None:
    """Delete what `orphans` found."""
    storage.delete([store.address(info.path) for info in found])


def _stage_record(store: CampaignStore, path: str) -> Any:
    try:
        return json.loads(read_object(store, path) or b"")
    except ValueError as error:
        raise DataError(f"{location(store, path)}: not valid JSON: {error}") from None


def _paths_in(value: Any) -> Iterator[str]:
    """Every string under a key `path`, however deep: the file records of a stage."""
    if isinstance(value, dict):
        path = value.get("path")
        if isinstance(path, str):
            yield path
        value = list(value.values())
    if isinstance(value, list):
        for nested in value:
            yield from _paths_in(nested)
