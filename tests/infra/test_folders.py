from __future__ import annotations

import os
from pathlib import Path

import pytest

from infra import folders, objects
from infra.manifest import FolderRecord, texts_only
from infra.store import (
    CampaignStore,
    check_objects,
    folder_path,
    location,
    open_campaign,
    put_folder,
    put_object,
    put_part,
    weights_only,
)
from opid_core.errors import DataError, InfrastructureError
from tests.factories import CONFIG, all_files, stored_paths
from tests.infra.servers import proxied


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache, and a process that was given nothing yet."""
    monkeypatch.setenv("OPID_CACHE", str(tmp_path / "cache"))
    folders._given.clear()
    return tmp_path / "cache"


def make_folder(tmp_path: Path, name: str, weights: bytes = b"weights") -> Path:
    local = tmp_path / name
    (local / "optimizer").mkdir(parents=True)
    (local / "model.safetensors").write_bytes(weights)
    (local / "optimizer" / "state.pt").write_bytes(b"")
    return local


def cached(cache: Path) -> list[str]:
    """Names of the attempts whose folders are in the cache."""
    return sorted(path.name for path in cache.glob("*/policies/*/*"))


def test_a_folder_is_copied_listed_and_verified(store, tmp_path, cache):
    local = make_folder(tmp_path, "local")
    record = put_folder(store, local, "policies/000001/attempt")
    assert [(f.path, f.size) for f in record.files] == [
        ("policies/000001/attempt/model.safetensors", 7),
        ("policies/000001/attempt/optimizer/state.pt", 0),
    ]
    # printf weights | sha256sum
    assert record.files[0].sha256 == "9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c"
    assert stored_paths(store, "policies") == [f.path for f in record.files]
    folder = folder_path(store, record)
    assert all_files(folder) == ["model.safetensors", "optimizer/state.pt"]
    assert (folder / "model.safetensors").read_bytes() == b"weights"
    assert put_folder(store, local, "policies/000001/attempt") == record
    (local / "model.safetensors").write_bytes(b"Weights")
    with pytest.raises(DataError, match=location(store, record.files[0].path)):
        put_folder(store, local, "policies/000001/attempt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: "):
        put_folder(store, tmp_path / "empty", "policies/000002/attempt")
    assert folder_path(store, record) == folder


def test_a_folder_of_it_may_be_left_out(store, tmp_path, cache):
    local = make_folder(tmp_path, "local")
    (local / "optimizer.json").write_bytes(b"{}")
    (local / ".DS_Store").write_bytes(b"of another program")
    (local / "deep" / "optimizer").mkdir(parents=True)
    (local / ".git").mkdir()
    (local / ".git" / "pack").write_bytes(b"the same weights again")
    (local / "deep" / "optimizer" / "x").write_bytes(b"")
    record = put_folder(store, local, "policies/000001/attempt", without="optimizer")
    kept = ["deep/optimizer/x", "model.safetensors", "optimizer.json"]
    assert [file.path for file in record.files] == [f"policies/000001/attempt/{name}" for name in kept]
    assert all_files(folder_path(store, record)) == kept


def test_a_folder_of_it_may_follow_later(store, tmp_path, cache):
    local, uri = make_folder(tmp_path, "local"), "policies/000001/attempt"
    (local / "optimizer" / ".state.pt.tmp").write_bytes(b"of another program")
    rest = put_folder(store, local, uri, without="optimizer")
    assert (folder_path(store, rest) / "model.safetensors").read_bytes() == b"weights"
    part = put_part(store, local, uri, "optimizer")
    assert [file.path for file in part] == [f"{uri}/optimizer/state.pt"]
    assert put_part(store, tmp_path / "empty", uri, "optimizer") == ()
    whole = FolderRecord(uri=uri, files=(*rest.files, *part))
    objects.delete([store.address(part[0].path)] if store.endpoint_url else [])  # S3: it is in the cache
    assert all_files(folder_path(store, whole)) == ["model.safetensors", "optimizer/state.pt"]
    assert all_files(folder_path(store, rest)) == ["model.safetensors", "optimizer/state.pt"]


def test_a_damaged_cut_or_missing_file_is_named(store, tmp_path, cache, monkeypatch):
    record = put_folder(store, make_folder(tmp_path, "local"), "policies/000001/attempt")
    monkeypatch.setenv("OPID_CACHE", str(tmp_path / "another machine"))
    path, name = record.files[0].path, location(store, record.files[0].path)
    put_object(store, path, b"WEIGHTS")
    with pytest.raises(DataError, match=rf"{name}: damaged: sha256 .*, its record says {record.files[0].sha256}"):
        folder_path(store, record)
    put_object(store, path, b"weights and more")
    with pytest.raises(DataError, match=rf"{name}: .*7 bytes"):
        folder_path(store, record)
    put_object(store, path, b"weight")
    with pytest.raises(DataError, match=rf"{name}: 6 bytes, its record says 7"):
        folder_path(store, record)
    objects.delete([store.address(path)])
    with pytest.raises(DataError, match=rf"{name}: missing"):
        folder_path(store, record)
    assert all_files(tmp_path / "another machine") == []


def test_a_file_that_is_longer_than_its_record_is_not_hashed(tmp_path, monkeypatch):
    store = open_campaign(tmp_path / "runs", "demo", CONFIG)
    record = put_folder(store, make_folder(tmp_path, "local"), "policies/000001/attempt")
    os.truncate(location(store, record.files[0].path), 1 << 40)
    monkeypatch.setattr("hashlib.file_digest", None)
    for use in (lambda: folder_path(store, record), lambda: check_objects(store, record.files)):
        with pytest.raises(DataError, match=r"model\.safetensors: .*7 bytes"):
            use()


@pytest.mark.parametrize(
    ("stray", "refused_by"),
    [
        ("extra.safetensors", ["whole", "weights"]),
        ("tokenizer_config.json", ["whole", "weights", "texts"]),
        ("pytorch_model.bin", ["whole", "weights", "texts"]),
        ("optimizer/state/evil.pt", ["whole"]),
    ],
)
def test_what_no_manifest_names_is_never_read_with_a_policy(tmp_path, stray, refused_by):
    store = open_campaign(tmp_path / "runs", "demo", CONFIG)
    local = make_folder(tmp_path, "local")
    (local / "config.json").write_text("{}")
    whole = put_folder(store, local, "policies/000001/attempt")
    put_object(store, f"{whole.uri}/{stray}", b"theirs")
    for kind, record in {"whole": whole, "weights": weights_only(whole), "texts": texts_only(whole)}.items():
        if kind in refused_by:
            with pytest.raises(DataError, match=rf"{stray}: "):
                folder_path(store, record)
        else:  # nobody reads it
            assert (folder_path(store, record) / "config.json").is_file()


# The cache of what lies on S3


@pytest.fixture
def counted(s3_store, s3_server):
    """The store of a campaign behind a proxy, and the proxy that counts its requests."""
    with proxied(s3_server.endpoint_url) as proxy:
        yield CampaignStore(s3_store.root, s3_store.campaign, proxy.url), proxy


def test_what_was_stored_need_not_be_downloaded(counted, tmp_path, cache):
    store, proxy = counted
    record = put_folder(store, make_folder(tmp_path, "local"), "policies/000001/attempt")
    proxy.requests.clear()
    folder = folder_path(store, record)
    assert proxy.requests == []
    assert all_files(folder) == ["model.safetensors", "optimizer/state.pt"]


def test_a_folder_is_downloaded_once_and_again_when_the_cached_one_is_spoilt(counted, tmp_path, cache, monkeypatch):
    store, proxy = counted
    record = put_folder(store, make_folder(tmp_path, "local"), "policies/000001/attempt")
    monkeypatch.setenv("OPID_CACHE", str(tmp_path / "another machine"))
    proxy.requests.clear()
    folder = folder_path(store, record)
    assert folder_path(store, record) == folder
    assert len(proxy.requests) == 2  # a GET a file
    for spoilt in (b"weight", b"WEIGHTS"):  # cut, or of the same size
        (folder / "model.safetensors").write_bytes(spoilt)
        (folder / "stray.safetensors").write_bytes(b"")
        assert (folder_path(store, record) / "model.safetensors").read_bytes() == b"weights"
    assert len(proxy.requests) == 4  # what is whole is not downloaded again
    assert all_files(tmp_path / "another machine") == [
        f"{folder.relative_to(tmp_path / 'another machine')}/{name}"
        for name in ("model.safetensors", "optimizer/state.pt")
    ]


def test_two_processes_that_fill_one_folder_agree(s3_store, tmp_path, cache):
    record = put_folder(s3_store, make_folder(tmp_path, "local"), "policies/000001/attempt")
    path = folder_path(s3_store, record)
    with folders._filling(path) as late:  # another process was faster
        (late / "part").write_bytes(b"")
    assert all_files(path) == ["model.safetensors", "optimizer/state.pt"]
    assert [entry.name for entry in path.parent.iterdir()] == ["attempt"]


def store_many(store, tmp_path, count: int) -> list[FolderRecord]:
    """Policies 0, 1, ...; the time of last use of number i is i seconds after 1970."""
    records = []
    for i in range(count):
        records.append(put_folder(store, make_folder(tmp_path, f"local-{i}"), f"policies/{i:06d}/a{i}"))
        path = folders._cached(store, records[-1].uri)
        os.utime(path, (i, i))
    return records


def test_the_least_recently_used_folders_are_evicted(s3_store, tmp_path, cache):
    records = store_many(s3_store, tmp_path, 4)
    assert cached(cache) == ["a0", "a1", "a2", "a3"]
    folder_path(s3_store, records[0])
    put_folder(s3_store, make_folder(tmp_path, "next"), "policies/000004/a4")
    assert cached(cache) == ["a0", "a2", "a3", "a4"]
    folder_path(s3_store, records[1])
    assert cached(cache) == ["a0", "a1", "a3", "a4"]


def test_what_this_process_was_given_last_stays_though_others_use_more(s3_store, tmp_path, cache):
    records = store_many(s3_store, tmp_path, 4)
    folders._given.clear()
    given = folder_path(s3_store, records[0])
    os.utime(given, (0, 0))
    (given.parents[1] / "000009" / "of another process").mkdir(parents=True)
    folder_path(s3_store, records[1])
    assert cached(cache) == ["a0", "a1", "a2", "a3", "of another process"]
    folders._given.clear()
    folder_path(s3_store, records[1])
    assert cached(cache) == ["a1", "a2", "a3", "of another process"]


def test_what_a_killed_download_left_is_removed_after_a_day(s3_store, tmp_path, cache):
    record = store_many(s3_store, tmp_path, 1)[0]
    parent = folder_path(s3_store, record).parent
    for name, modified in ((".old.tmp", 0), (".new.tmp", None)):
        (parent / name).mkdir()
        os.utime(parent / name, None if modified is None else (modified, modified))
    folder_path(s3_store, record)
    assert sorted(entry.name for entry in parent.iterdir()) == [".new.tmp", "a0"]


def test_a_download_that_fails_leaves_nothing(s3_store, s3_server, tmp_path, cache, monkeypatch):
    record = put_folder(s3_store, make_folder(tmp_path, "local"), "policies/000001/attempt")
    monkeypatch.setenv("OPID_CACHE", str(tmp_path / "file" / "cache"))
    (tmp_path / "file").write_text("")
    with pytest.raises(InfrastructureError, match=f"{tmp_path}/file/cache/.*: .*Not a directory"):
        folder_path(s3_store, record)
