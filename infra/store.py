"""The store of one campaign: immutable objects, and a chain of create-only manifests that makes them count.

    <root>/<campaign>/config.json                                    created once
    <root>/<campaign>/<table>/iteration=000003/<attempt>/part-0.parquet
    <root>/<campaign>/policies/000004/<attempt>/...
    <root>/<campaign>/_commits/000000.json, 000001.json, ...         the commits: create-only; 0 is the start
    <root>/<campaign>/_lease/...                                     who works on it (`infra.lease`)
    <root>/<campaign>/_pruned/...                                    which optimizer states were deleted for their space
    <root>/<campaign>/_notified/000003-degraded                      which messages have arrived (`flows.notify`)

Readers follow manifests only, never listings: an object that no manifest names does not exist. The root is a local
folder or `s3://bucket/prefix`; all I/O goes through `infra.objects`. Import the functions of a store from here;
they are made in `campaigns`, `tables`, `folders`, `commits` and `retention`.
"""

from infra.campaigns import (
    CampaignStore,
    campaign_exists,
    check_writable,
    create_object,
    find_campaign,
    known_campaigns,
    list_campaigns,
    list_objects,
    list_studies,
    local_folder,
    local_name,
    location,
    open_campaign,
    put_object,
    read_config,
    read_object,
    size_text,
    stored_config_hash,
)
from infra.commits import (
    base_of,
    check_config,
    check_objects,
    commit,
    files_of,
    is_committed,
    manifests,
    manifests_after,
    pruned,
    standing,
    verify,
)
from infra.folders import folder_path, put_folder, put_part
from infra.local_objects import ObjectInfo
from infra.manifest import STATE_FOLDER, weights_only
from infra.retention import delete_orphans, orphans, prune_states
from infra.tables import key_of, new_attempt, read_file, read_table, write_table

__all__ = [
    "STATE_FOLDER",
    "CampaignStore",
    "ObjectInfo",
    "base_of",
    "campaign_exists",
    "check_config",
    "check_objects",
    "check_writable",
    "commit",
    "create_object",
    "delete_orphans",
    "files_of",
    "find_campaign",
    "folder_path",
    "is_committed",
    "key_of",
    "known_campaigns",
    "list_campaigns",
    "list_objects",
    "list_studies",
    "local_folder",
    "local_name",
    "location",
    "manifests",
    "manifests_after",
    "new_attempt",
    "open_campaign",
    "orphans",
    "prune_states",
    "pruned",
    "put_folder",
    "put_object",
    "put_part",
    "read_config",
    "read_file",
    "read_object",
    "read_table",
    "size_text",
    "standing",
    "stored_config_hash",
    "verify",
    "weights_only",
    "write_table",
]
