from __future__ import annotations

import errno
import multiprocessing
import os
import random
import resource
import subprocess
import threading

import pytest

from infra import objects, s3_objects
from infra.objects import S3Address, address_of, create_file, create_only, read
from opid_core.errors import ConfigError, DataError, InfrastructureError
from tests.factories import all_files
from tests.infra.servers import proxied


@pytest.fixture
def folder(root) -> objects.Address:
    return address_of(root.address, root.endpoint_url)


def test_an_object_is_created_once_and_leaves_no_temporary_file(folder):
    address = folder / "deep" / "object"
    assert read(address) is None
    assert objects.size_of(address) is objects.digest_of(address) is None
    assert create_only(address, b"first")
    assert not create_only(address, b"second")
    assert create_only(address, b"first")  # it holds what was asked for
    assert read(address) == b"first"
    assert objects.size_of(address) == 5
    # printf first | sha256sum
    sha256 = "a7937b64b8caa58f03721bb6bacf5c78cb235febe0e70b1b84cd99541461a08e"
    assert objects.digest_of(address) == (5, sha256)
    assert [(info.path, info.size) for info in objects.list_objects(folder)] == [("deep/object", 5)]


def test_no_more_memory_is_taken_than_there_is_to_read(folder):
    create_only(folder / "object", b"first")
    assert read(folder / "object", 10**12) == read(folder / "object", 10**30) == b"first"
    with pytest.raises(DataError, match=r"object: .*4 bytes"):
        read(folder / "object", 4)


def test_listing_overwriting_and_deleting(folder, tmp_path):
    for name in ("b/2", "b/1", "a/1", "ab", "empty"):
        assert create_only(folder / name, b"" if name == "empty" else b"x")
    assert [(info.path, info.size) for info in objects.list_objects(folder)] == [
        ("a/1", 1),
        ("ab", 1),
        ("b/1", 1),
        ("b/2", 1),
        ("empty", 0),
    ]
    assert objects.list_folders(folder) == ["a", "b"]
    (tmp_path / "now").touch()
    assert abs(objects.list_objects(folder)[0].modified - (tmp_path / "now").stat().st_mtime) < 60
    assert objects.list_objects(folder / "none") == objects.list_folders(folder / "none") == []
    assert [info.path for info in objects.list_objects(folder / "a")] == ["1"]  # not `ab`
    objects.put(folder / "b/1", b"xyz")
    assert read(folder / "b/1") == b"xyz"
    assert read(folder / "empty") == b""
    objects.delete([folder / "a/1", folder / "b/2", folder / "never"])
    assert [info.path for info in objects.list_objects(folder)] == ["ab", "b/1", "empty"]


@pytest.mark.parametrize(
    ("number", "kind"),
    [(errno.EACCES, ConfigError), (errno.EIO, InfrastructureError), (errno.ESTALE, InfrastructureError)],
)
def test_a_folder_that_cannot_be_read_is_not_taken_for_an_empty_one(tmp_path, monkeypatch, number, kind):
    create_only(tmp_path / "a" / "1", b"x")
    create_only(tmp_path / "b" / "1", b"x")
    scandir = os.scandir

    def refuse(folder):
        if str(folder).endswith("/b"):
            raise OSError(number, os.strerror(number), folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    assert [info.path for info in objects.list_objects(tmp_path / "a")] == ["1"]
    with pytest.raises(kind, match="cannot be listed"):
        objects.list_objects(tmp_path)


@pytest.mark.parametrize("size", [0, 1, (5 << 20) - 1, 5 << 20, (11 << 20) + 3])
def test_a_file_goes_up_in_pieces_and_comes_down_the_same(folder, tmp_path, monkeypatch, size):
    monkeypatch.setattr(s3_objects, "UPLOAD_PIECE_BYTES", 5 << 20)  # the smallest that S3 allows
    source, copy, back = tmp_path / "source", tmp_path / "copy", tmp_path / "back"
    source.write_bytes(random.Random(0).randbytes(size))
    sha256 = subprocess.run(["sha256sum", str(source)], capture_output=True, text=True, check=True).stdout.split()[0]
    copied = isinstance(folder, S3Address)
    assert create_file(folder / "big", source, copy if copied else None) == (True, size, sha256)
    assert not copied or copy.read_bytes() == source.read_bytes()
    assert objects.download(folder / "big", back) == objects.digest_of(folder / "big") == (size, sha256)
    assert back.read_bytes() == source.read_bytes()
    source.write_bytes(bytes(size))
    created, found_size, other = create_file(folder / "big", source)
    assert (created, found_size) == (False, size)
    assert objects.digest_of(folder / "big") == (size, sha256)
    assert (other == sha256) == (size == 0)
    assert objects.download(folder / "none", tmp_path / "none") is None


def test_a_background_thread_and_the_main_thread_share_a_store(folder):
    def write_all(name: str) -> None:
        for i in range(10):
            objects.put(folder / name, str(i).encode())

    threads = [threading.Thread(target=write_all, args=(name,)) for name in ("a", "b")]
    for thread in threads:
        thread.start()
    write_all("c")
    for thread in threads:
        thread.join()
    assert [read(folder / name) for name in "abc"] == [b"9"] * 3


# Faults of a disk


@pytest.mark.parametrize("write", [create_only, objects.put])
def test_an_object_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch, write):
    path, synced = tmp_path / "object", []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append((os.fstat(descriptor).st_ino, path.exists())))
    write(path, b"data")
    assert synced == [(path.stat().st_ino, False), (tmp_path.stat().st_ino, True)]


@pytest.mark.parametrize(
    ("number", "kind", "message"),
    [
        (errno.EPERM, ConfigError, r"^root: .* is on a file system without hard links .*; choose another root$"),
        (errno.ENOTSUP, ConfigError, r"^root: .* is on a file system without hard links .*; choose another root$"),
        (errno.EIO, InfrastructureError, "object: cannot be written: "),
        (errno.ENOSPC, InfrastructureError, "object: cannot be written: .*; free some space$"),
        (errno.EDQUOT, InfrastructureError, "object: cannot be written: .*; free some space$"),
    ],
)
def test_a_file_system_without_hard_links_is_no_place_for_a_root(tmp_path, monkeypatch, number, kind, message):
    def refuse(*names) -> None:
        raise OSError(number, os.strerror(number), *names[:1])

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(kind, match=message):
        create_only(tmp_path / "object", b"data")
    assert list(tmp_path.iterdir()) == []


def _create_beyond_the_limit(folder, results) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    for attempt in (b"a" * 2000, b"a" * 1000):
        try:
            results.put(create_only(folder / "object", attempt))
        except InfrastructureError as error:
            results.put(str(error))


def test_a_full_disk_leaves_nothing_and_the_same_call_succeeds_once_there_is_room(tmp_path):
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=_create_beyond_the_limit, args=(tmp_path / "deep", results))
    process.start()
    assert results.get(timeout=60) == f"{tmp_path}/deep/object: cannot be written: File too large"
    assert results.get(timeout=60) is True
    process.join()
    assert all_files(tmp_path) == ["deep/object"]


def test_a_disk_that_only_the_user_can_mend_is_no_passing_fault(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("needs root to make a file immutable")
    folder = tmp_path / "frozen"
    folder.mkdir()
    if subprocess.run(["chattr", "+i", str(folder)], capture_output=True).returncode:
        pytest.skip("the file system has no immutable folders")
    try:
        with pytest.raises(ConfigError, match=f"{folder}/a: .*Operation not permitted"):
            create_only(folder / "a", b"")
    finally:
        subprocess.run(["chattr", "-i", str(folder)], check=True)


# What a network can do


def test_a_create_whose_answer_was_lost_is_ours_all_the_same(s3_root, s3_server):
    with proxied(s3_server.endpoint_url) as proxy:
        address = address_of(s3_root.address, proxy.url) / "manifest"
        proxy.lose_answers = 1
        assert create_only(address, b"of this run")
        assert [request.split()[0] for request in proxy.requests] == ["PUT", "PUT", "GET"]
        proxy.lose_answers = 1
        assert not create_only(address, b"of another run")
        assert read(address) == b"of this run"


def test_a_conflict_with_a_request_in_flight_is_tried_again(s3_root, s3_server):
    with proxied(s3_server.endpoint_url) as proxy:
        address = address_of(s3_root.address, proxy.url) / "object"
        proxy.conflicts = 2
        assert create_only(address, b"a")
        assert [request.split()[0] for request in proxy.requests] == ["PUT"] * 3
        proxy.conflicts = 2
        assert not create_only(address, b"b")


def test_an_answer_that_ends_in_its_middle_is_a_fault(s3_root, s3_server, tmp_path):
    with proxied(s3_server.endpoint_url) as proxy:
        address = address_of(s3_root.address, proxy.url) / "object"
        assert create_only(address, b"x" * 100_000)
        proxy.cut_answers = True
        for call in (lambda: read(address), lambda: objects.download(address, tmp_path / "object")):
            with pytest.raises(InfrastructureError, match=f"{address}: cannot be read: {proxy.url} failed or gave no"):
                call()
        proxy.cut_answers = False
        assert read(address) == b"x" * 100_000
