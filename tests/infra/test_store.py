from __future__ import annotations

import json
import multiprocessing
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra import store as stores
from infra.objects import create_only, read
from infra.store import (
    check_writable,
    find_campaign,
    folder_path,
    open_campaign,
    put_folder,
    read_table,
    write_table,
)
from opid_core import schema
from opid_core.errors import ConfigError, DataError, InfrastructureError
from tests.infra.stored import CONFIG, all_files, scores_table

# Campaigns


def test_a_campaign_is_created_once_and_may_be_extended_tracked_and_moved(tmp_path):
    store = open_campaign(tmp_path, "demo", CONFIG)
    assert json.loads((tmp_path / "demo" / "config.json").read_text()) == CONFIG
    changed = {**CONFIG, "iterations": 9, "tracking": {"tensorboard": False}, "root": "elsewhere"}
    assert open_campaign(tmp_path, "demo", changed) == store
    assert stores.read_config(store) == CONFIG
    assert all_files(tmp_path) == ["demo/config.json"]


def test_another_config_is_refused_with_each_difference(tmp_path):
    open_campaign(tmp_path, "demo", CONFIG)
    other = {
        "campaign": "demo",
        "iterations": 4,
        "learner": {"learning_rate": 2e-6, "betas": [0.9, 0.999]},
        "policy": None,
    }
    with pytest.raises(ConfigError) as caught:
        open_campaign(tmp_path, "demo", other)
    lines = str(caught.value).splitlines()
    assert lines[1:-1] == [
        "  learner.learning_rate: stored 1e-06, given 2e-06",
        "  policy: stored (absent), given null",
        "  seed: stored 0, given (absent)",
    ]
    assert lines[0] == f"campaign: 'demo' exists in {tmp_path} with another config:"
    assert lines[-1] == "choose another campaign name, or set the stored values to continue it"
    assert json.loads((tmp_path / "demo" / "config.json").read_text()) == CONFIG


def test_a_damaged_config_is_named(tmp_path):
    open_campaign(tmp_path, "demo", CONFIG)
    path = tmp_path / "demo" / "config.json"
    path.write_text("{")
    with pytest.raises(DataError, match=f"{path}: not valid JSON"):
        open_campaign(tmp_path, "demo", CONFIG)
    path.write_text("[]")
    with pytest.raises(DataError, match=f"{path}: expected a JSON object, got list"):
        open_campaign(tmp_path, "demo", CONFIG)


def test_looking_for_an_unknown_campaign_lists_the_known_ones_and_touches_nothing(tmp_path):
    with pytest.raises(ConfigError, match=r"no campaign 'x' in .*; there is no campaign there"):
        find_campaign(tmp_path / "none", "x")
    assert not (tmp_path / "none").exists()
    open_campaign(tmp_path, "two", CONFIG)
    one = open_campaign(tmp_path, "one", CONFIG)
    with pytest.raises(ConfigError, match=r"no campaign 'x' in .*; campaigns there: one, two"):
        find_campaign(tmp_path, "x")
    assert find_campaign(tmp_path, "one") == one


def test_an_unusable_root_is_refused_before_anything_is_made(tmp_path):
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(ConfigError, match=f"{file} is not a folder"):
        open_campaign(file, "demo", CONFIG)
    with pytest.raises(ConfigError, match=r"MiB free, the campaign needs 1099511627776 MiB"):
        check_writable(tmp_path / "new" / "deep", 2**60)
    assert all_files(tmp_path) == ["file"]
    assert not (tmp_path / "new").exists()
    check_writable(tmp_path / "new" / "deep", 1)


def test_a_root_without_write_permission_is_refused(tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    refused = multiprocessing.get_context("fork").Queue()

    def open_unprivileged() -> None:
        if os.geteuid() == 0:  # root may write anywhere
            os.setgid(65534)
            os.setuid(65534)
        try:
            open_campaign(closed, "demo", CONFIG)
        except ConfigError as error:
            refused.put(str(error))

    for folder in (tmp_path, *tmp_path.parents):
        if folder.owner() == tmp_path.owner() and folder.stat().st_mode & 0o777 == 0o700:
            folder.chmod(0o755)
    process = multiprocessing.get_context("fork").Process(target=open_unprivileged)
    process.start()
    process.join()
    assert refused.get(timeout=10) == f"root: no permission to write in {closed}; choose another root"
    assert list(closed.iterdir()) == []


# Objects


def test_an_object_is_created_once_and_leaves_no_temporary_file(tmp_path):
    path = tmp_path / "deep" / "object"
    assert create_only(path, b"first")
    assert not create_only(path, b"second")
    assert read(path) == b"first"
    assert all_files(tmp_path) == ["deep/object"]


def test_a_storage_fault_names_the_object(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InfrastructureError, match=r"file/object: cannot be written: "):
        create_only(tmp_path / "file" / "object", b"data")


# Tables and folders


def test_a_table_comes_back_as_written(store):
    record = write_table(store, "scores", 3, "attempt", scores_table())
    assert record.path == "scores/iteration=000003/attempt/part-0.parquet"
    assert (record.rows, record.schema_version) == (1, schema.VERSION)
    assert record.size == (store.folder / record.path).stat().st_size
    back = read_table(store, record)
    assert back.equals(scores_table())
    assert schema.content_hash(back) == record.content_hash == schema.content_hash(scores_table())


def test_columns_are_stored_as_designed(store):
    record = write_table(store, "scores", 0, "attempt", scores_table())
    group = pq.ParquetFile(store.folder / record.path).metadata.row_group(0)
    columns = [group.column(i) for i in range(group.num_columns)]
    split = {c.path_in_schema.split(".")[0] for c in columns if "BYTE_STREAM_SPLIT" in c.encodings}
    assert split == {"old_log_probs", "skill_log_probs", "reference_log_probs", "skill_advantages"}
    assert not any(c.has_dictionary_page for c in columns if c.path_in_schema.split(".")[0] in split)
    assert {c.compression for c in columns} == {"ZSTD"}


def test_equal_rows_give_equal_bytes_however_they_are_chunked(store):
    halves = [scores_table(step=0), scores_table(step=1)]
    chunked = pa.concat_tables(halves)
    whole = schema.from_rows("scores", chunked.to_pylist())
    sliced = pa.concat_tables([*halves, *halves]).slice(0, 2)
    records = [write_table(store, "scores", 0, f"a{i}", t) for i, t in enumerate((chunked, whole, sliced))]
    assert len({r.sha256 for r in records}) == 1
    assert len({r.content_hash for r in records}) == 1


def test_a_part_is_immutable_but_writing_the_same_again_is_no_fault(store):
    record = write_table(store, "scores", 0, "attempt", scores_table())
    assert write_table(store, "scores", 0, "attempt", scores_table()) == record
    with pytest.raises(DataError, match=r"part-0.parquet: exists with other bytes"):
        write_table(store, "scores", 0, "attempt", scores_table(first=-0.75))
    assert read_table(store, record).equals(scores_table())


@pytest.mark.parametrize(
    ("name", "table", "message"),
    [
        ("score", scores_table(), "table 'score': unknown; known tables: steps"),
        ("scores", scores_table().drop_columns(["trained"]), "table scores: expected columns"),
        ("metrics", scores_table(), "table metrics: expected columns"),
        (
            "metrics",
            pa.table({"iteration": pa.array([0]), "name": ["a"], "value": [0.5]}),
            "table metrics, column iteration: expected int32, got int64",
        ),
        (
            "metrics",
            schema.from_rows("metrics", [{"iteration": 0, "name": None, "value": 1.0}]),
            "table metrics, column name: 1 nulls where none are allowed",
        ),
    ],
)
def test_a_table_of_another_form_is_refused(store, name, table, message):
    with pytest.raises(DataError, match=message):
        write_table(store, name, 0, "attempt", table)
    assert all_files(store.folder) == ["config.json"]


def test_a_damaged_cut_missing_or_foreign_table_is_named(store):
    record = write_table(store, "scores", 0, "attempt", scores_table())
    path = store.folder / record.path
    data = path.read_bytes()
    path.write_bytes(data[:100] + bytes([data[100] ^ 1]) + data[101:])
    with pytest.raises(DataError, match=f"{path}: damaged: sha256 .*, its record says {record.sha256}"):
        read_table(store, record)
    path.write_bytes(data[:-1])
    with pytest.raises(DataError, match=f"{path}: {record.size - 1} bytes, its record says {record.size}"):
        read_table(store, record)
    path.unlink()
    with pytest.raises(DataError, match=f"{path}: missing"):
        read_table(store, record)
    newer = record.model_copy(update={"schema_version": schema.VERSION + 1})
    with pytest.raises(
        DataError, match=f"{path}: written with table schema version {schema.VERSION + 1}, this program"
    ):
        read_table(store, newer)


def test_a_folder_is_copied_listed_and_verified(store, tmp_path):
    local = tmp_path / "local"
    (local / "optimizer").mkdir(parents=True)
    (local / "model.safetensors").write_bytes(b"weights")
    (local / "optimizer" / "state.pt").write_bytes(b"")
    record = put_folder(store, local, "policies/000001/attempt")
    assert [(f.path, f.size) for f in record.files] == [
        ("policies/000001/attempt/model.safetensors", 7),
        ("policies/000001/attempt/optimizer/state.pt", 0),
    ]
    # printf weights | sha256sum
    assert record.files[0].sha256 == "9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c"
    folder = folder_path(store, record, verify=True)
    assert all_files(folder) == ["model.safetensors", "optimizer/state.pt"]
    assert put_folder(store, local, "policies/000001/attempt") == record
    (folder / "model.safetensors").write_bytes(b"WEIGHTS")
    assert folder_path(store, record) == folder
    with pytest.raises(DataError, match=r"model.safetensors: damaged"):
        folder_path(store, record, verify=True)
    (folder / "optimizer" / "state.pt").unlink()
    with pytest.raises(DataError, match=r"state.pt: missing"):
        folder_path(store, record)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: no files to store"):
        put_folder(store, tmp_path / "empty", "policies/000002/attempt")
