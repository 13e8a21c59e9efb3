from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import pickle
import re
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra import objects
from infra.campaigns import SECTIONS
from infra.store import (
    CampaignStore,
    campaign_exists,
    check_objects,
    check_writable,
    find_campaign,
    list_campaigns,
    list_studies,
    local_folder,
    location,
    open_campaign,
    put_object,
    read_config,
    read_object,
    read_table,
    stored_config_hash,
    write_table,
)
from opid_core import schema
from opid_core.config import CampaignConfig
from opid_core.errors import ConfigError, DataError
from opid_core.sections import Section
from tests.factories import CONFIG, all_files, metrics_table, refuse, scores_table, stored_paths

# Campaigns


def test_a_campaign_is_created_once_and_may_be_extended_tracked_and_moved(root):
    store = open_campaign(root.address, "demo", CONFIG, root.endpoint_url)
    assert json.loads(read_object(store, "config.json") or b"") == CONFIG
    changed = {
        **CONFIG,
        "iterations": 9,
        "tracking": {"tensorboard": False},
        "root": "elsewhere",
        "storage": {"endpoint_url": "http://elsewhere"},
        "recovery": {"lease_ttl_s": 5.0},
    }
    assert open_campaign(root.address, "demo", changed, root.endpoint_url) == store
    assert read_config(store) == CONFIG
    assert [info.path for info in objects.list_objects(store.address())] == ["config.json"]


def test_a_root_may_be_written_as_a_file_address(tmp_path):
    store = open_campaign(f"file://{tmp_path}", "demo", CONFIG)
    assert store == open_campaign(tmp_path, "demo", CONFIG) == CampaignStore(str(tmp_path), "demo")
    assert location(store, "config.json") == f"{tmp_path}/demo/config.json"
    assert local_folder(store, "report") == tmp_path / "demo" / "report"
    with pytest.raises(ConfigError, match=r"root: .*gs:.*s3://BUCKET/PREFIX"):
        open_campaign("gs://bucket/x", "demo", CONFIG)


def test_a_store_on_s3_is_named_by_its_address_and_travels(s3_store, s3_root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert location(s3_store, "config.json") == f"{s3_root.address}/demo/config.json"
    assert location(s3_store) == f"{s3_root.address}/demo"
    assert re.fullmatch(rf"{tmp_path}/runs/demo-[0-9a-f]{{16}}/report", str(local_folder(s3_store, "report")))
    others = [replace(s3_store, root="s3://other/x"), replace(s3_store, endpoint_url=None)]
    assert len({local_folder(store, "report") for store in (s3_store, *others)}) == 3
    assert pickle.loads(pickle.dumps(s3_store)) == s3_store
    assert hash(find_campaign(s3_root.address + "/", "demo", s3_root.endpoint_url)) == hash(s3_store)
    check_writable(s3_root.address, 2**60, s3_root.endpoint_url)  # a bucket has no size


def test_another_config_is_refused_with_each_difference(store, root):
    other = {
        "campaign": "demo",
        "iterations": 4,
        "learner": {"learning_rate": 2e-6, "betas": [0.9, 0.999]},
        "policy": None,
    }
    with pytest.raises(ConfigError) as caught:
        open_campaign(root.address, "demo", other, root.endpoint_url)
    lines = str(caught.value).splitlines()
    assert lines[1:-1] == [
        "  learner.learning_rate: stored 1e-06, given 2e-06",
        "  policy: stored (absent), given null",
        "  seed: stored 0, given (absent)",
    ]
    assert lines[0] == f"campaign: 'demo' exists in {root.address} with another config:"
    assert lines[-1] == "choose another campaign name, or set the stored values to continue it"
    assert read_config(store) == CONFIG


def test_a_damaged_config_is_named(store, root):
    put_object(store, "config.json", b"{")
    with pytest.raises(DataError, match=f"{location(store)}/config.json: not valid JSON"):
        open_campaign(root.address, "demo", CONFIG, root.endpoint_url)
    put_object(store, "config.json", b'{"campaign": "\\ud800"}')
    with pytest.raises(DataError, match=f"{location(store)}/config.json: not valid JSON: .* surrogates not allowed"):
        stored_config_hash(store)
    put_object(store, "config.json", b"[]")
    with pytest.raises(DataError, match=f"{location(store)}/config.json: expected a JSON object, got list"):
        open_campaign(root.address, "demo", CONFIG, root.endpoint_url)
    assert read_object(store, "config.json") == b"[]"


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        *(({name: 5}, name) for name in SECTIONS),
        ({"method": None}, "method"),
        ({"environment": []}, "environment"),
        ({"campaign": ["demo"]}, "campaign"),
        ({"campaign": None}, "campaign"),
        ({"environment": {"options": {}}}, "environment.name"),
        ({"method": {"name": 5}}, "method.name"),
        ({"analyzer": {}}, "analyzer.backend"),
    ],
)
def test_a_config_of_another_form_is_named_with_its_field(tmp_path, changed, field):
    store = open_campaign(tmp_path, "demo", CONFIG)
    put_object(store, "config.json", json.dumps({**CONFIG, **changed}).encode())
    with pytest.raises(DataError, match=re.escape(f"{tmp_path}/demo/config.json: {field}: expected ")):
        read_config(store)


def test_the_sections_of_a_stored_config_are_those_of_a_config():
    fields = CampaignConfig.model_fields.items()
    assert {*SECTIONS} == {name for name, field in fields if isinstance(field.default, Section)}


def test_looking_for_an_unknown_campaign_lists_the_known_ones_and_touches_nothing(root, tmp_path):
    url = root.endpoint_url
    with pytest.raises(ConfigError, match=r"no campaign 'x' in .*; there is no campaign there"):
        find_campaign(root.address, "x", url)
    assert not (tmp_path / "runs").exists()
    with pytest.raises(ConfigError, match=f"the study's folder; write x --root {root.address}/study$"):
        find_campaign(root.address, "study/x", url)
    if url is None:
        open_campaign(f"{root.address}/study", "x", CONFIG)
        with pytest.raises(ConfigError, match=rf"there; in its studies: x with --root {root.address}/study$"):
            find_campaign(root.address, "x")
    open_campaign(root.address, "two", CONFIG, url)
    one = open_campaign(root.address, "one", CONFIG, url)
    put_object(CampaignStore(root.address, "none", url), "other", b"")
    put_object(CampaignStore(root.address, "model", url), "config.json", b'{"model_type": "qwen2"}')
    with pytest.raises(ConfigError, match=r"campaign: .*model .*config\.json"):
        open_campaign(root.address, "model", CONFIG, url)
    with pytest.raises(ConfigError, match=rf"no campaign 'x' in {root.address}; campaigns there: one, two") as raised:
        find_campaign(root.address, "x", url)
    assert ("; in its studies: x with --root " in str(raised.value)) == (url is None)
    assert find_campaign(root.address, "one", url) == one


def test_an_unusable_root_is_refused_before_anything_is_made(tmp_path):
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(ConfigError, match=f"root: {file} "):
        open_campaign(file, "demo", CONFIG)
    with pytest.raises(ConfigError, match=r"free, the campaign needs 1,073,741,824 GiB; .* another root, or else$"):
        check_writable(tmp_path / "new" / "deep", 2**60, otherwise=", or else")
    assert all_files(tmp_path) == ["file"]
    assert not (tmp_path / "new").exists()
    check_writable(tmp_path / "new" / "deep", 1)


def test_a_folder_that_refuses_to_be_read_is_no_campaign_of_ours(root, monkeypatch):
    for name in ("demo", "theirs"):
        open_campaign(root.address, name, CONFIG | {"campaign": name}, root.endpoint_url)
    refuse(monkeypatch, "theirs")
    assert list_campaigns(root.address, root.endpoint_url) == ["demo"]
    assert campaign_exists(root.address, "demo", root.endpoint_url)
    assert not campaign_exists(root.address, "new", root.endpoint_url)
    with pytest.raises(ConfigError, match=r"no campaign 'new' in .*; campaigns there: demo$"):
        find_campaign(root.address, "new", root.endpoint_url)
    for asked in (campaign_exists, find_campaign):  # for this one by name: why it cannot be had
        with pytest.raises(ConfigError, match=r"theirs/config\.json: cannot be read: Permission denied"):
            asked(root.address, "theirs", root.endpoint_url)


def test_a_folder_that_refuses_to_be_listed_is_no_study_of_ours(tmp_path, monkeypatch):
    for study in ("ours", "theirs"):
        open_campaign(tmp_path / study, "demo", CONFIG)
    (tmp_path / "empty").mkdir()
    refuse(monkeypatch, "theirs")
    assert list_studies(tmp_path) == {tmp_path / "ours": ["demo"]}
    with pytest.raises(ConfigError, match=rf"in its studies: demo with --root {tmp_path}/ours$"):
        find_campaign(tmp_path, "demo")


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


# Tables


def test_a_table_comes_back_as_written(store):
    record = write_table(store, "scores", 3, "attempt", scores_table())
    assert record.path == "scores/iteration=000003/attempt/part-0.parquet"
    assert (record.rows, record.schema_version) == (1, schema.VERSION)
    assert record.size == objects.size_of(store.address(record.path))
    back = read_table(store, record)
    assert back.equals(scores_table())
    assert schema.content_hash(back) == record.content_hash == schema.content_hash(scores_table())


def test_columns_are_stored_as_designed(store):
    record = write_table(store, "scores", 0, "attempt", scores_table())
    data = read_object(store, record.path)
    group = pq.ParquetFile(pa.BufferReader(data)).metadata.row_group(0)
    columns = [group.column(i) for i in range(group.num_columns)]
    split = {c.path_in_schema.split(".")[0] for c in columns if "BYTE_STREAM_SPLIT" in c.encodings}
    assert split == {
        "old_log_probs",
        "skill_log_probs",
        "added_log_probs",
        "placebo_log_probs",
        "reference_log_probs",
        "skill_advantages",
    }
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


def test_of_a_table_the_columns_asked_for_come_back_in_their_order(store):
    record = write_table(store, "metrics", 1, "attempt", metrics_table())
    back = read_table(store, record, ["value", "name"])
    assert back.to_pydict() == {"value": [0.5, 1.0], "name": ["rollout/return", "seconds/rollout_s"]}


def test_a_part_is_immutable_but_writing_the_same_again_is_no_fault(store):
    record = write_table(store, "scores", 0, "attempt", scores_table())
    assert write_table(store, "scores", 0, "attempt", scores_table()) == record
    with pytest.raises(DataError, match=r"part-0.parquet: "):
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
    assert stored_paths(store, name) == []


def test_a_table_of_other_rows_than_its_record_says_is_not_read(store, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    record = write_table(store, "scores", 0, "attempt", scores_table())
    more = record.model_copy(update={"rows": 2})
    for use in (lambda: read_table(store, more), lambda: check_objects(store, [more])):
        with pytest.raises(DataError, match=rf"^{location(store)}/.*part-0\.parquet: 1 rows, its record says 2"):
            use()
    put_object(store, record.path, b"x")
    other = record.model_copy(update={"size": 1, "sha256": hashlib.sha256(b"x").hexdigest()})
    with pytest.raises(DataError, match=r"part-0\.parquet: "):
        read_table(store, other)


def test_a_damaged_cut_missing_or_foreign_table_is_named(store):
    record = write_table(store, "scores", 0, "attempt", scores_table())
    path, name = record.path, location(store, record.path)
    data = read_object(store, path)
    assert data is not None
    put_object(store, path, data[:100] + bytes([data[100] ^ 1]) + data[101:])
    with pytest.raises(DataError, match=f"{name}: damaged: sha256 .*, its record says {record.sha256}"):
        read_table(store, record)
    put_object(store, path, data[:-1])
    with pytest.raises(DataError, match=f"{name}: {record.size - 1} bytes, its record says {record.size}"):
        read_table(store, record)
    objects.delete([store.address(path)])
    with pytest.raises(DataError, match=f"{name}: missing"):
        read_table(store, record)
    newer = record.model_copy(update={"schema_version": schema.VERSION + 1})
    with pytest.raises(
        DataError, match=f"{name}: written with table schema version {schema.VERSION + 1}, this program"
    ):
        read_table(store, newer)
