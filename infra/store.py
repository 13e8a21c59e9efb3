"""The store of one campaign: immutable objects, and a chain of create-only manifests that makes them count.

    <root>/<campaign>/config.json                                    created once
    <root>/<campaign>/<table>/iteration=000003/<attempt>/part-0.parquet
    <root>/<campaign>/policies/000004/<attempt>/...
    <root>/<campaign>/_commits/start.json, 000000.json, ...          the commits: create-only
    <root>/<campaign>/_lease/...                                     who works on it (`infra.lease`)
    <root>/<campaign>/_given_up/...                                  what was deleted for its space (`infra.retention`)

Readers follow manifests only, never listings: an object that no manifest names does not exist. The root is a local
folder or `s3://bucket/prefix`; all I/O goes through `infra.objects`. This module is the store's face; what it offers
is made in `campaigns`, `tables`, `folders`, `commits` and `retention`.
"""

from infra.campaigns import (
    CampaignStore,
    check_writable,
    create_object,
    find_campaign,
    list_campaigns,
    list_objects,
    local_folder,
    location,
    open_campaign,
    put_object,
    read_config,
    read_object,
)
from infra.commits import check_objects, commit, manifests, next_iteration, objects, standing, verify
from infra.folders import folder_path, put_folder
from infra.object_types import ObjectInfo
from infra.retention import STATE_FOLDER, give_up_states, given_up, weights_only
from infra.tables import key_of, new_attempt, read_table, write_table

__all__ = [
    "STATE_FOLDER",
    "CampaignStore",
    "ObjectInfo",
    "check_objects",
    "check_writable",
    "commit",
    "create_object",
    "find_campaign",
    "folder_path",
    "give_up_states",
    "given_up",
    "key_of",
    "list_campaigns",
    "list_objects",
    "local_folder",
    "location",
    "manifests",
    "new_attempt",
    "next_iteration",
    "objects",
    "open_campaign",
    "put_folder",
    "put_object",
    "read_config",
    "read_object",
    "read_table",
    "standing",
    "verify",
    "weights_only",
    "write_table",
]
