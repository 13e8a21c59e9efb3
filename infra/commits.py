"""The commits of a campaign: a chain of create-only manifests that makes its objects count."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from pydantic import ValidationError

from infra import objects
from infra.campaigns import NUMBERED, CampaignStore, list_objects, location, read_object, stored_config_hash
from infra.manifest import (
    STATE_FOLDER,
    FileRecord,
    FolderRecord,
    Manifest,
    Pruned,
    chain_from_bytes,
    from_bytes,
    parse,
    problems,
    to_bytes,
)
from infra.objects import Address
from infra.scratch import scratch_folder
from infra.tables import check_object, key_of, opened
from opid_core.errors import DataError, GateError

PRUNED = "_pruned"
"""Folder of the notes (`000003.json`: of policy 3) of which optimizer states were deleted for their space: they tell a
file that is gone on purpose from one that was lost."""
_FOLDER = "_commits"
_READ_AT_ONCE = 16
"""How many are asked for before it is known whether there are so many: as many requests at most are in vain."""


def commit(store: CampaignStore, manifest: Manifest) -> tuple[Manifest, bool]:
    """Make `manifest`'s iteration exist, once: the manifest that stands, and whether it is this one.

    A loser adopts the winner's manifest. Raises GateError for a manifest with a failed gate; DataError when an object
    it names is missing or of another size, or when it does not follow the manifest that stands before it.
    """
    failed = [gate.table for gate in manifest.gates.values() if not gate.passed]
    if failed:
        raise GateError(f"iteration {manifest.iteration}: not committed, the gates of {', '.join(failed)} failed")
    _check_sizes(store, files_of(manifest))
    previous = None
    if manifest.iteration:
        before = _address(store, manifest.iteration - 1)
        data = objects.read(before)
        if data is None:
            raise DataError(f"iteration {manifest.iteration}: not committed, the iteration before it is not")
        previous = parse(data, str(before))
    address = _address(store, manifest.iteration)
    data = to_bytes(manifest)
    from_bytes(data, f"iteration {manifest.iteration}, not committed", previous)
    if objects.create_only(address, data):
        return manifest, True
    standing = objects.read(address)
    if standing is None:
        raise DataError(f"{address}: removed while it was being committed")
    return from_bytes(standing, str(address), previous), False


def manifests(store: CampaignStore) -> list[Manifest]:
    """The chain: 0 (the start), 1, 2, ... up to the newest. Raises DataError that names the first manifest that was
    changed, does not follow the one before, or is missing although a later one is there."""
    return chain_from_bytes(_stored(store))


def manifests_after(store: CampaignStore, chain: Sequence[Manifest]) -> list[Manifest]:
    """`chain`, as `manifests` read it earlier, and what was committed since: that alone is read. Raises DataError as
    `manifests`."""
    extended = list(chain)
    while (data := objects.read(address := _address(store, len(extended)))) is not None:
        extended.append(from_bytes(data, str(address), extended[-1] if extended else None))
    return extended


def _stored(store: CampaignStore) -> Iterator[tuple[bytes, str]]:
    """Bytes and name of each manifest up to the first missing one. Raises DataError where a later one is there."""
    at_once = objects.small_at_once(store.address())
    # Listed before any is read: what a driver commits meanwhile is not in the listing, and so never looks like a gap.
    listed = _listed(store)
    for first in itertools.count(0, _READ_AT_ONCE):
        numbers = range(first, first + _READ_AT_ONCE)
        addresses = [_address(store, iteration) for iteration in numbers]
        read = objects.each_in_parallel(objects.read, addresses, at_once)
        for iteration, address, data in zip(numbers, addresses, read, strict=True):
            if data is None:
                if later := min((one for one in listed if one > iteration), default=0):
                    raise DataError(
                        f"{address}: missing, although {key_of(later)}.json follows it; restore it from a copy"
                    )
                return
            yield data, str(address)


def _listed(store: CampaignStore) -> list[int]:
    """The iterations that have a manifest, as far as the names in the folder tell."""
    stems = [Path(info.path).stem for info in list_objects(store, _FOLDER, NUMBERED)]
    return [int(stem) for stem in stems if stem == key_of(int(stem))]


def is_committed(store: CampaignStore, iteration: int) -> bool:
    """Whether the iteration has a manifest. One small request; what is in it is looked at by `manifests`."""
    return objects.size_of(_address(store, iteration)) is not None


def base_of(store: CampaignStore) -> FolderRecord:
    """The policy of the start, on which those that are adapters stand. Raises DataError where there is no start."""
    data = objects.read(address := _address(store, 0))
    if data is None:
        raise DataError(f"{address}: missing: a policy that is an adapter stands on that of the start")
    return from_bytes(data, str(address), None).policy


def files_of(manifest: Manifest) -> list[FileRecord]:
    """Every file that a manifest names."""
    return [*manifest.tables.values(), *manifest.policy.files]


def standing(store: CampaignStore, chain: Sequence[Manifest]) -> list[FileRecord]:
    """Every file that `chain` names, but for the optimizer states that were pruned."""
    gone = pruned(store)
    return [record for manifest in chain for record in files_of(manifest) if record.path not in gone]


def pruned(store: CampaignStore) -> set[str]:
    """Paths of the files that `retention.prune_states` deleted.

    Raises DataError for a note that cannot be read, or that names anything but the optimizer state of its policy: it
    would hide the loss of that.
    """
    paths: set[str] = set()
    for note in list_objects(store, PRUNED, NUMBERED):
        state = re.compile(rf"policies/{Path(note.path).stem}/[^/]+/{STATE_FOLDER}/.")
        try:
            files = Pruned.model_validate_json(read_object(store, note.path) or b"").files
        except ValidationError as error:
            raise DataError(f"{location(store, note.path)}: no note of pruned files: {problems(error)}") from None
        if other := next((path for path in files if not state.match(path)), None):
            raise DataError(f"{location(store, note.path)}: names {other!r}, no optimizer state of its policy")
        paths.update(files)
    return paths


def verify(
    store: CampaignStore,
    on_file: Callable[[FileRecord], None] | None = None,
    chain: Sequence[Manifest] | None = None,
) -> int:
    """Re-hash every file of the chain (None: the store's) and say how many there are; `on_file` gets each that was
    found whole, in order. Raises DataError that names the first bad one."""
    return check_objects(store, standing(store, manifests(store) if chain is None else chain), on_file)


def check_config(store: CampaignStore, chain: Sequence[Manifest]) -> None:
    """Raise DataError where the stored config is not the one that the start was committed with."""
    if chain and stored_config_hash(store) != chain[0].config_hash:
        raise DataError(
            f"{location(store, 'config.json')}: changed after it was created: the manifest of the start names a config "
            f"with the hash {chain[0].config_hash}; put back the file as it was"
        )


def check_objects(
    store: CampaignStore, records: Sequence[FileRecord], on_file: Callable[[FileRecord], None] | None = None
) -> int:
    """Re-hash files, count the rows of tables, and say how many files there are; `on_file` gets each that was found
    whole, in order. A table on S3 is fetched once, to a file that lasts as long as its check. Raises DataError that
    names the first bad one."""
    whole = 0
    with scratch_folder() as scratch:

        def check(numbered: tuple[int, FileRecord]) -> FileRecord | None:
            number, record = numbered
            address, copy = store.address(record.path), scratch / f"{number}.parquet"
            is_fetched = record.rows is not None and not isinstance(address, Path)
            digest = (
                objects.download(address, copy, record.size) if is_fetched else objects.digest_of(address, record.size)
            )
            if digest is None and record.path in pruned(store):  # by a running campaign, since the records were read
                return None
            check_object(address, record, digest)
            if record.rows is not None:
                opened(address if isinstance(address, Path) else copy, address, record).close()
            copy.unlink(missing_ok=True)
            return record

        for record in objects.each_in_parallel(check, enumerate(records)):
            if record is not None:
                whole += 1
                if on_file is not None:
                    on_file(record)
    return whole


def _check_sizes(store: CampaignStore, records: Iterable[FileRecord]) -> None:
    """One listing for each attempt's folder (`<table>/<iteration>/<attempt>`), not one request for each file."""
    by_folder: dict[str, list[FileRecord]] = {}
    for record in records:
        by_folder.setdefault("/".join(record.path.split("/")[:3]), []).append(record)
    listings = objects.in_parallel(lambda folder: objects.list_objects(store.address(folder)), list(by_folder))
    for (folder, named), listing in zip(by_folder.items(), listings, strict=True):
        sizes = {f"{folder}/{info.path}": info.size for info in listing}
        for record in named:
            size = sizes.get(record.path)
            check_object(store.address(record.path), record, None if size is None else (size, record.sha256))


def _address(store: CampaignStore, iteration: int) -> Address:
    return store.address(f"{_FOLDER}/{key_of(iteration)}.json")
