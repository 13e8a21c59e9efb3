"""What may be deleted of a campaign: old optimizer states, and what killed or losing attempts left."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from infra import local_objects, objects, stages
from infra.campaigns import CampaignStore, create_object, list_objects
from infra.commits import PRUNED, files_of, manifests, pruned
from infra.local_objects import ObjectInfo
from infra.manifest import Manifest, Pruned, state_files
from infra.tables import key_of
from opid_core import schema


def prune_states(store: CampaignStore, chain: Sequence[Manifest], keep: int, *, done: int = 0) -> int:
    """Delete the optimizer states of all but the `keep` newest (at least 1) policies of `chain`; how many there were.

    They are most of what a campaign stores, and only the newest is ever continued from. The weights stay. Called again
    after a crash it deletes what is left. `done`: so many of the oldest policies were seen to before and are not looked
    at; otherwise the time taken grows with all that the campaign has stored.
    """
    states = {manifest.policy_version: state_files(manifest.policy) for manifest in chain[done:-keep]}
    folders = [f"policies/{key_of(version)}" for version in states] if done else ["policies"] if states else []
    stored = {info.path for folder in folders for info in list_objects(store, folder)}
    due = {version: files for version, files in states.items() if any(file.path in stored for file in files)}
    for version, files in due.items():  # first the note: a deletion that is cut short is no loss, and goes on later
        note = Pruned(files=tuple(file.path for file in files)).model_dump_json(indent=2) + "\n"
        create_object(store, f"{PRUNED}/{key_of(version)}.json", note.encode())
        objects.delete([store.address(file.path) for file in files])
    return len(due)


def orphans(store: CampaignStore, older_than_s: float) -> list[ObjectInfo]:
    """Parts of tables and policies, and temporary files of killed writes, that nothing names: no manifest (pruned
    optimizer states count as unnamed), and no stage record of the next two iterations. No reader sees them; they only
    take space. Only those last written more than `older_than_s` seconds ago, by the store's clock: a running
    attempt's newest objects are not named yet.

    Raises DataError for a damaged or lost manifest, or a damaged stage record: what it would have named is not known.
    """
    # First the listing, then what names it: an object that is committed between the two is seen as named.
    stored = [info for folder in (*schema.TABLES, "policies") for info in list_objects(store, folder)]
    folder = store.address()
    if isinstance(folder, Path):
        stored += local_objects.list_objects(folder, temporary=True)
    chain = manifests(store)
    named = {record.path for manifest in chain for record in files_of(manifest)} - pruned(store)
    for unfinished in (len(chain), len(chain) + 1):  # of the latter the rollout may have been played ahead
        for record in list_objects(store, f"_stages/{key_of(unfinished)}", r"[0-9]+/[a-z_]+\.json"):
            named.update(_paths_in(stages.read_record(store, record.path)))
    newest = time.time() - older_than_s
    left = (info for info in stored if info.path not in named and info.modified < newest)
    return sorted(left, key=lambda info: info.path)


def delete_orphans(store: CampaignStore, unnamed: Sequence[ObjectInfo]) -> None:
    """Delete what `orphans` found."""
    objects.delete([store.address(info.path) for info in unnamed])


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
