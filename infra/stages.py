"""Records of finished stages, so that an interrupted iteration goes on where it was.

    <root>/<campaign>/_stages/000003/<attempt>/rollout.json    what the stage made: create-only
    <root>/<campaign>/_stages/000003/<attempt>/failed.json     why this attempt at the iteration was given up

Attempts are counted from 0; the current one is the first that was not given up. Nothing but a resumed iteration reads
these records: what is not in a manifest does not exist.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from infra.campaigns import CampaignStore, create_object, list_objects, location, read_object
from infra.tables import key_of
from opid_core.errors import DataError
from opid_core.hashing import canonical_json
from opid_core.reading import parse_json

_FAILED = "failed"
_FIELDS = {True: {"reason": str, "at": str}, False: {"made_from": dict, "result": dict}}
"""Of a record, by whether it is one of `_FAILED`."""


def current_attempt(store: CampaignStore, iteration: int) -> int:
    """The attempt at `iteration` to make or to go on with: the number of those that were given up."""
    return len(failures(store, iteration))


def failures(store: CampaignStore, iteration: int) -> list[dict[str, Any]]:
    """Why and when each earlier attempt at `iteration` was given up: dicts with `reason` and `at` (ISO 8601, UTC)."""
    records: list[dict[str, Any]] = []
    while (record := read_record(store, _path(iteration, len(records), _FAILED))) is not None:
        records.append(record)
    return records


def finished(store: CampaignStore, iteration: int, attempt: int) -> set[str]:
    """Names of the stages that have a record in this attempt."""
    folder = _path(iteration, attempt, "").rsplit("/", 1)[0]
    listed = list_objects(store, folder, r"[a-z_]+\.json")
    return {info.path.rsplit("/", 1)[1].removesuffix(".json") for info in listed} - {_FAILED}


def give_up(store: CampaignStore, iteration: int, attempt: int, reason: str) -> None:
    """Close `attempt`: no record of it is used again. Of two runs that do so the first reason stands."""
    at = datetime.now(UTC).isoformat(timespec="seconds")
    _create(store, _path(iteration, attempt, _FAILED), {"reason": reason, "at": at})


def recorded(
    store: CampaignStore, iteration: int, attempt: int, stage: str, made_from: Mapping[str, Any]
) -> dict[str, Any] | None:
    """What `stage` recorded in this attempt, None where it has not finished.

    Raises DataError where the record was damaged, or was `made_from` something else: another policy, config or version
    of the program.
    """
    path = _path(iteration, attempt, stage)
    record = read_record(store, path)
    if record is None:
        return None
    differing = [name for name, value in made_from.items() if record["made_from"].get(name) != value]
    if differing:
        raise DataError(f"{location(store, path)}: made from another {', '.join(differing)}")
    return record["result"]


def record(
    store: CampaignStore,
    iteration: int,
    attempt: int,
    stage: str,
    made_from: Mapping[str, Any],
    result: Mapping[str, Any],
) -> dict[str, Any]:
    """Record that `stage` has finished; returns what stands: ours, or that of a run which was faster."""
    path = _path(iteration, attempt, stage)
    if _create(store, path, {"made_from": dict(made_from), "result": dict(result)}):
        return dict(result)
    standing = recorded(store, iteration, attempt, stage, made_from)
    if standing is None:
        raise DataError(f"{location(store, path)}: removed while it was being written")
    return standing


def _path(iteration: int, attempt: int, name: str) -> str:
    return f"_stages/{key_of(iteration)}/{attempt:03d}/{name}.json"


def _create(store: CampaignStore, path: str, value: dict[str, Any]) -> bool:
    whole = {**value, "checksum": _checksum(value)}
    return create_object(store, path, (json.dumps(whole, sort_keys=True, ensure_ascii=False) + "\n").encode())


def read_record(store: CampaignStore, path: str) -> dict[str, Any] | None:
    """The record stored at `path`, None where there is none. Raises DataError that names it where it was damaged."""
    data = read_object(store, path)
    if data is None:
        return None
    try:
        value = parse_json(data)
        checksum = value.pop("checksum", None) if isinstance(value, dict) else None
        expected = _checksum(value)  # a ValueError for half of a surrogate pair too, which UTF-8 has no bytes for
    except ValueError as error:
        raise DataError(f"{location(store, path)}: not valid JSON: {error}") from None
    if checksum != expected:
        raise DataError(f"{location(store, path)}: the record was changed after it was written (checksum differs)")
    fields = _FIELDS[path.endswith(f"/{_FAILED}.json")]
    if not isinstance(value, dict) or {name: type(held) for name, held in value.items()} != fields:
        raise DataError(f"{location(store, path)}: no record of a stage: its fields are not {', '.join(fields)}")
    return value


def _checksum(value: Any) -> str:
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()
