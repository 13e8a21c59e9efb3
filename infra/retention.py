"""Optimizer states that were given up for their space (`storage.optimizer_states`).

They are most of what a campaign stores, and only the newest is ever continued from.

    <root>/<campaign>/_given_up/000003.json    what of policy 3 was deleted: written first, create-only

The note tells a file that is gone on purpose from one that was lost, and a deletion that was cut short from none.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from infra import objects
from infra.campaigns import CampaignStore, create_object, list_objects, location, read_object
from infra.manifest import FileRecord, FolderRecord, Manifest
from opid_core.errors import DataError

STATE_FOLDER = "optimizer"
"""Inside a policy's folder: the learner's own state, for an exact resume."""
NOTES = "_given_up"


def weights_only(policy: FolderRecord) -> FolderRecord:
    """The policy's folder without its optimizer state: what it takes to sample and to score."""
    return policy.model_copy(update={"files": tuple(file for file in policy.files if not _is_state(policy, file))})


def give_up_states(store: CampaignStore, chain: Sequence[Manifest], keep: int) -> int:
    """Delete the optimizer states of all but the `keep` newest (at least 1) policies of `chain`; how many there were.

    The weights stay. Called again after a crash it deletes what is left.
    """
    standing = {info.path for info in list_objects(store, "policies")} if len(chain) > keep else set()
    states = {m.policy_version: [f for f in m.policy.files if _is_state(m.policy, f)] for m in chain[:-keep]}
    due = {version: files for version, files in states.items() if any(file.path in standing for file in files)}
    for version, files in due.items():
        note = json.dumps({"files": [file.path for file in files]}, indent=2) + "\n"
        create_object(store, f"{NOTES}/{version:06d}.json", note.encode())
        objects.delete([store.address(file.path) for file in files])
    return len(due)


def given_up(store: CampaignStore) -> set[str]:
    """Paths of the files that were given up. Raises DataError for a note that cannot be read."""
    found: set[str] = set()
    for note in list_objects(store, NOTES):
        try:
            found.update(json.loads(read_object(store, note.path) or b"")["files"])
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{location(store, note.path)}: no note of files that were given up: {error}") from None
    return found


def _is_state(policy: FolderRecord, file: FileRecord) -> bool:
    return file.path.startswith(f"{policy.uri}/{STATE_FOLDER}/")
