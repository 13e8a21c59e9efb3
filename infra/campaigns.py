"""Campaigns in a store: where one lies, its config, and its small objects."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from infra import names, objects, s3_objects
from infra.local_objects import ObjectInfo
from infra.objects import Address
from opid_core.errors import ConfigError, DataError
from opid_core.hashing import ABSENT, MAY_DIFFER, canonical_json, config_differences
from opid_core.reading import parse_json

SECTIONS = (
    *("environment", "rollout", "engine", "prompting", "analyzer", "method", "learner", "warm_start", "evaluation"),
    *("tracking", "notify", "storage", "cluster", "recovery", "gates"),
)
"""Of a config: the keys that have keys below them."""
_NAMES = ("campaign", "environment.name", "method.name", "analyzer.backend")
"""Of a config: the texts that reports show."""
NUMBERED = r"[0-9]{6,}\.json"
"""Form of the names of leases, and of the notes of policies."""


@dataclass(frozen=True)
class CampaignStore:
    """Where one campaign lies. Made by `open_campaign` (to write) or `find_campaign` (to read). Holds no connection."""

    root: str
    """An absolute folder, or `s3://bucket/prefix`."""
    campaign: str
    endpoint_url: str | None = None

    def address(self, path: str = "") -> Address:
        """The address of an object or folder of the campaign. Raises DataError for a path that leads out of it, or
        through a symbolic link: every name that is read or written passes here."""
        return objects.address_below(self._folder, path) if path else self._folder

    @cached_property
    def _folder(self) -> Address:
        return objects.address_of(self.root, self.endpoint_url) / self.campaign


def location(store: CampaignStore, path: str = "") -> str:
    """Full name of the campaign, or of an object of it, for messages."""
    return str(store.address(path))


def local_folder(store: CampaignStore, name: str) -> Path:
    """Where the campaign's reports or logs called `name` lie, which are no part of the store: beside it, or in
    `runs/<local_name>` of the working directory when the store is on S3.

    Raises DataError where it or anything in it is a symbolic link: what is written there must not land elsewhere.
    """
    folder = store.address()
    if not isinstance(folder, Path):
        folder = Path("runs").absolute() / local_name(store.root, store.campaign, store.endpoint_url)
    path = names.path_below(folder, name)
    objects.list_objects(path)
    return path


def local_name(root: str, name: str, endpoint_url: str | None) -> str:
    """What `name` below a root on S3 is called on this machine: that of another bucket, prefix or server is another."""
    digest = hashlib.sha256(f"{endpoint_url}\n{root}\n{name}".encode()).hexdigest()
    return f"{name}-{digest[:16]}"


def check_writable(root: str | Path, needed_bytes: int, endpoint_url: str | None = None, otherwise: str = "") -> None:
    """Raise ConfigError unless `root` can be made or written and its disk has `needed_bytes` free; `otherwise`: what
    else would help. Touches nothing.

    On S3: unless the bucket answers to the credentials found.
    """
    path = objects.address_of(root, endpoint_url)
    if not isinstance(path, Path):
        s3_objects.check_reachable(path)
        return
    # os.path.exists, not Path.exists: behind a folder that may not be entered it says False instead of raising.
    existing = next(parent for parent in (path, *path.parents) if os.path.exists(parent))
    if not existing.is_dir():
        raise ConfigError(f"root: {existing} is not a folder; choose another root")
    if not os.access(existing, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
        raise ConfigError(f"root: no permission to write in {existing}; choose another root")
    free = shutil.disk_usage(existing).free
    if free < needed_bytes:
        raise ConfigError(
            f"root: {existing} has {size_text(free)} free, the campaign needs {size_text(needed_bytes)}; free some "
            f"space, or choose another root{otherwise}"
        )


def size_text(size: float) -> str:
    """Bytes as MiB, and from ten GiB on as GiB."""
    if size >= 10 * 2**30:
        return f"{size / 2**30:,.0f} GiB"
    return f"{size / 2**20:.{int(size < 10 * 2**20)}f} MiB"


def open_campaign(
    root: str | Path, campaign: str, config_json: Mapping[str, Any], endpoint_url: str | None = None
) -> CampaignStore:
    """The store of `campaign`, created with its config when it is new.

    Raises ConfigError when the root cannot be written, when its server cannot create objects exactly once, or when the
    campaign exists with another config (the keys of `MAY_DIFFER` aside): each differing key is shown with both values.
    """
    store = _store(root, campaign, endpoint_url)
    given = json.loads(json.dumps(config_json))
    address = store.address("config.json")
    if isinstance(address, Path):
        check_writable(address.parent, 0)
    data = objects.read(address)
    if data is None:
        data = (json.dumps(given, indent=2, ensure_ascii=False) + "\n").encode()
        if not objects.create_only(address, data):
            data = objects.read(address) or b""
    if not isinstance(address, Path) and not s3_objects.refuses_to_overwrite(address, data):
        raise ConfigError(
            f"root: the server of {address} ignores `If-None-Match: *` and overwrites what exists: two runs could "
            "commit the same iteration; use a server with conditional writes"
        )
    if not _is_campaign(store.address()):
        raise ConfigError(
            f"campaign: {store.address()} holds no campaign, but a config.json: choose another name or root"
        )
    differing = [
        f"  {key}: stored {_show(stored)}, given {_show(new)}"
        for key, (stored, new) in config_differences(read_config(store), given, MAY_DIFFER).items()
    ]
    if differing:
        raise ConfigError(
            f"campaign: {campaign!r} exists in {store.root} with another config:\n"
            + "\n".join(differing)
            + "\nchoose another campaign name, or set the stored values to continue it"
        )
    return store


def find_campaign(root: str | Path, campaign: str, endpoint_url: str | None = None) -> CampaignStore:
    """The store of a campaign that exists. Raises ConfigError that lists those that do; touches nothing."""
    store = _store(root, campaign, endpoint_url)
    if not _is_campaign(store.address()):
        known = known_campaigns(root, endpoint_url)
        raise ConfigError(f"campaign: no campaign {campaign!r} in {store.root}; {known}")
    return store


def campaign_exists(root: str | Path, campaign: str, endpoint_url: str | None = None) -> bool:
    """Whether there is such a campaign under `root`, be it damaged; nothing else that lies there is looked at."""
    return _is_campaign(_store(root, campaign, endpoint_url).address())


def list_campaigns(root: str | Path, endpoint_url: str | None = None) -> list[str]:
    """Names of the campaigns under `root`, sorted; touches nothing. A folder there that we may not read (`lost+found`,
    somebody else's) is no campaign of ours."""
    folder = objects.address_of(root, endpoint_url)
    folders = [name for name in objects.list_folders(folder) if names.is_one_folder(name)]  # a server may list anything
    are_campaigns = objects.in_parallel(lambda name: _is_readable_campaign(folder / name), folders)
    return [name for name, is_campaign in zip(folders, are_campaigns, strict=True) if is_campaign]


def list_studies(root: Path) -> dict[Path, list[str]]:
    """Folders directly below `root` that hold campaigns, as a study's does, with the names of these; touches
    nothing. A folder that we may not read is none of ours."""
    studies = {}
    for name in objects.list_folders(root):
        with suppress(ConfigError):
            if campaigns := list_campaigns(folder := root / name):
                studies[folder] = campaigns
    return studies


def known_campaigns(root: str | Path, endpoint_url: str | None = None) -> str:
    """What an error says of a root in which a campaign was looked for: which there are, and (of a local one) which in
    the studies below it."""
    here = list_campaigns(root, endpoint_url)
    answer = f"campaigns there: {', '.join(here)}" if here else "there is no campaign there"
    folder = objects.address_of(root, endpoint_url)
    studies = list_studies(folder) if isinstance(folder, Path) else {}
    below = "; ".join(f"{', '.join(campaigns)} with --root {study}" for study, campaigns in studies.items())
    return answer + (f"; in its studies: {below}" if below else "")


def _is_readable_campaign(folder: Address) -> bool:
    try:
        return _is_campaign(folder)
    except ConfigError:
        return False


def _is_campaign(folder: Address) -> bool:
    """Whether a campaign lies there, be it damaged: a model's folder has a config.json too."""
    try:
        data = objects.read(folder / "config.json")
        config = None if data is None else parse_json(data)
    except (DataError, ValueError):
        return True
    return data is not None and (not isinstance(config, dict) or "campaign" in config)


def read_config(store: CampaignStore) -> dict[str, Any]:
    """The config that the campaign was created with, as plain data. Raises DataError that names the file."""
    address = store.address("config.json")
    try:
        config = parse_json(objects.read(address) or b"")
        canonical_json(config).encode()  # half of a surrogate pair: no hash and no report could be made of it
    except ValueError as error:
        raise DataError(f"{address}: not valid JSON: {error}") from None
    if not isinstance(config, dict):
        raise DataError(f"{address}: expected a JSON object, got {type(config).__name__}")
    for name in config.keys() & SECTIONS:
        if not isinstance(config[name], dict):
            raise DataError(f"{address}: {name}: expected keys below it, got {_show(config[name])}")
    for name in _NAMES:
        section, _, key = name.rpartition(".")
        # what an older version stored may lack the whole section
        if section in config or not section:
            value = (config[section] if section else config).get(key)
            if not isinstance(value, str):
                raise DataError(f"{address}: {name}: expected a text, got {_show(value)}")
    return config


def stored_config_hash(store: CampaignStore) -> str:
    """`hashing.config_hash` of the config that the campaign was created with."""
    return hashlib.sha256(canonical_json(read_config(store)).encode()).hexdigest()


def create_object(store: CampaignStore, path: str, data: bytes) -> bool:
    """Create an object of the campaign unless it exists; whether it holds `data` now (see `objects.create_only`)."""
    return objects.create_only(store.address(path), data)


def read_object(store: CampaignStore, path: str) -> bytes | None:
    """The bytes of an object of the campaign, or None when there is none."""
    return objects.read(store.address(path))


def put_object(store: CampaignStore, path: str, data: bytes) -> None:
    """Write an object that is no part of the record, over what is there."""
    objects.put(store.address(path), data)


def list_objects(store: CampaignStore, prefix: str = "", form: str = ".+") -> list[ObjectInfo]:
    """The objects in the campaign or its folder `prefix`, sorted; their paths are relative to the campaign.

    Only those whose path below `prefix` is of the regular expression `form`, and none of whose names begins with a dot:
    what else lies there (`.nfs0001`, `.DS_Store`, somebody's copy) is none of ours.
    """
    everything = objects.list_objects(store.address(prefix))
    ours = (info for info in everything if re.fullmatch(form, info.path) and not re.search(r"(^|/)\.", info.path))
    return [ObjectInfo(f"{prefix}/{info.path}".lstrip("/"), info.size, info.modified) for info in ours]


def _store(root: str | Path, campaign: str, endpoint_url: str | None) -> CampaignStore:
    if not names.is_one_folder(campaign):
        study, _, name = campaign.rpartition("/")
        both = names.is_one_folder(study) and names.is_one_folder(name)
        raise ConfigError(
            f"campaign: {campaign!r} is no name of a campaign: it is the name of one folder below the root, which for "
            "the campaigns of a study is the study's folder"
            + (f"; write {name} --root {str(root).rstrip('/')}/{study}" if both else "")
        )
    return CampaignStore(str(objects.address_of(root, endpoint_url)), campaign, endpoint_url)


def _show(value: Any) -> str:
    return value if value is ABSENT else json.dumps(value, ensure_ascii=False)
