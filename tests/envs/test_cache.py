"""Folders that are built once a machine, and records in memory-mapped files."""

from __future__ import annotations

import multiprocessing
import os
import threading
from pathlib import Path

import pytest

from envs.cache import Records, build_once, cached_folder, write_records
from opid_core.errors import ConfigError, DataError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("OPID_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "world"


def test_a_folder_is_built_once_for_a_key(cache):
    built = []

    def build(folder: Path) -> None:
        built.append(folder)
        (folder / "part").mkdir()
        (folder / "part" / "data").write_text("whole")

    folders = [build_once("world", "index", {"size": size}, build) for size in (1, 2, 1)]
    assert len(built) == 2
    assert folders[0] == folders[2] != folders[1]
    assert (folders[0] / "part" / "data").read_text() == "whole"
    assert sorted(cache.iterdir()) == sorted(folders[:2])
    assert folders[0].name.startswith("index-")


def test_a_failed_build_leaves_nothing(cache):
    def build(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise DataError("bad passage")

    with pytest.raises(DataError, match="bad passage"):
        build_once("world", "failing", {}, build)
    assert list(cache.iterdir()) == []


def test_a_damaged_folder_is_named():
    def build(folder: Path) -> None:
        (folder / "data").write_text("whole")

    folder = build_once("world", "index", {}, build)
    (folder / "data").write_text("wh")
    with pytest.raises(DataError, match=r"index-.*: damaged \(data\); remove this folder"):
        build_once("world", "index", {}, build)
    (folder / "data").unlink()
    with pytest.raises(DataError, match=r"index-.*: damaged \(.*data.*\); remove this folder"):
        build_once("world", "index", {}, build)


def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("OPID_CACHE", str(tmp_path / "file"))
    with pytest.raises(ConfigError, match=r"OPID_CACHE: cannot write to .*file/world"):
        build_once("world", "index", {}, lambda folder: None)


def test_two_threads_that_build_at_once_read_one_folder(cache):
    both_inside = threading.Barrier(2, timeout=60)
    found: list[Path] = []

    def build(folder: Path) -> None:
        both_inside.wait()
        write_records(folder, "numbers", range(100))

    threads = [threading.Thread(target=lambda: found.append(build_once("world", "race", {}, build))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found[0] == found[1]
    records = Records(found[0], "numbers")
    assert [records[index] for index in range(len(records))] == list(range(100))
    assert list(cache.iterdir()) == [found[0]]


def _build_at_once(barrier, results) -> None:
    def build(folder: Path) -> None:
        barrier.wait(timeout=60)  # both processes are building before either is done
        (folder / "data").write_text("whole")

    folder = build_once("world", "raced", {}, build)
    results.put((str(folder), (folder / "data").read_text(), os.getpid()))


def test_two_processes_that_build_at_once_read_one_folder(cache):
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    processes = [context.Process(target=_build_at_once, args=(barrier, results)) for _ in range(2)]
    for process in processes:
        process.start()
    found = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert len({pid for _, _, pid in found}) == 2
    assert {(folder, text) for folder, text, _ in found} == {(str(next(cache.iterdir())), "whole")}
    assert len(list(cache.iterdir())) == 1


def test_records_are_read_back(tmp_path):
    records = [["1", "é\n\n日本"], ["2", '"quoted"'], {"3": None}]
    assert write_records(tmp_path, "some", records) == 3
    found = Records(tmp_path, "some")
    assert [found[index] for index in range(len(found))] == records
    for outside in (-1, 3):
        with pytest.raises(IndexError):
            found[outside]
    assert write_records(tmp_path, "none", []) == 0
    assert len(Records(tmp_path, "none")) == 0


def test_webshop_folders_lie_in_their_own_part(cache):
    folder = cached_folder("webshop", "goals-3", lambda folder: (folder / "part").mkdir())
    assert folder.parent == cache.parent / "webshop"
    assert folder.name.startswith("goals-3-")
