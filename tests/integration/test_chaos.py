"""A short round of the chaos command: killed, brought back, and equal to the undisturbed campaign."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest

from benchmarks.chaos import checks, protocol, reader, victims
from benchmarks.chaos.campaign import RoundFailed, clear_environment
from benchmarks.chaos.play import Reference, Shape, open_storage, play
from infra.store import open_campaign
from opid_core.errors import DataError
from tests.conftest import S3_BUCKET
from tests.factories import CONFIG, make_chain, make_manifest

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1800)]

KILLS = [victims.STORAGE, victims.DRIVER]


STEPS = {
    "000000/lease": 1.0,
    "000000/initial_policy": 3.0,
    "000000/evaluate": 3.0,
    "000001/rollout": 3.0,
    "000001/commit": 3.0,
    "000002/rollout": 3.0,
    "000002/rescore": 3.0,
    "000002/update": 0.3,
    "000002/commit": 1.0,
}
"""In their order, with the longest time in seconds from the step before to a kill. The seed lets the storage die while
the first policy is made, and the driver in the last update."""


@pytest.fixture
def reference(campaign) -> Reference:
    return Reference(checks.result_of(campaign.store), STEPS)


@pytest.mark.slow  # kills on a disk are in test_recovery.py, a campaign on S3 in test_environments.py
def test_a_campaign_on_s3_that_is_killed_ends_as_one_on_a_disk_to_which_nothing_happened(
    reference, prefect_database, tmp_path, monkeypatch
):
    clear_environment(monkeypatch.delenv)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_EC2_METADATA_DISABLED"):
        monkeypatch.setenv(name, "")  # what the storage sets is undone at the end
    (home := tmp_path / "killed" / ".prefect" / "home").mkdir(parents=True)
    shutil.copy(prefect_database, home)
    kills = iter(KILLS)
    storage = open_storage("s3", tmp_path, seed=1)
    try:
        outcome = play(
            storage,
            tmp_path,
            "killed",
            Shape("s3", 1, "command"),
            reference,
            len(KILLS),
            random.Random(1),
            lambda living: next(kills),
            print,
            pause_s=4.0,
        )
    finally:
        storage.close()
    assert outcome.failure is None, outcome.failure
    assert [victim for victim, _ in outcome.kills] == KILLS
    assert outcome.resumes >= 1  # for the driver
    assert outcome.readings > 0


def test_the_checks_find_what_they_are_for(tmp_path):
    store, folder = open_campaign(tmp_path / "store", "demo", CONFIG), tmp_path / "store" / "demo"
    chain = make_chain(store, tmp_path, 3)
    expected = checks.result_of(store)
    make_manifest(store, tmp_path, chain[-1])  # never committed: its two tables and two files are orphans
    orphans = list((folder / "scores").rglob("*.parquet"))
    assert len(orphans) == 4
    checks.check_result(store, expected, iterations=2)
    assert len(list((folder / "scores").rglob("*.parquet"))) == 3
    assert len(list((folder / "policies").rglob("model.safetensors"))) == 3

    with pytest.raises(RoundFailed, match=r"iterations \['0', '1', '2'\] are committed, expected .*'3'"):
        checks.check_result(store, expected, iterations=3)
    with pytest.raises(RoundFailed, match="content of manifest 1: not as in the undisturbed run"):
        checks.check_result(store, replace(expected, contents={**expected.contents, "1": "other"}), iterations=2)
    with pytest.raises(RoundFailed, match="content hash of table 0/metrics: not as"):
        checks.check_result(store, replace(expected, tables={**expected.tables, "0/metrics": "other"}), iterations=2)
    (folder / "_commits" / "000001 (copy).json").touch()
    with pytest.raises(RoundFailed, match="in _commits lie"):
        checks.check_result(store, expected, iterations=2)
    (folder / chain[1].tables["scores"].path).write_bytes(b"damaged")
    with pytest.raises(DataError, match="7 bytes"):
        checks.check_result(store, expected, iterations=2)


def test_the_reader_sees_a_vanished_commit_and_damage(tmp_path):
    store, folder = open_campaign(tmp_path / "store", "demo", CONFIG), tmp_path / "store" / "demo"
    chain = make_chain(store, tmp_path, 2)
    seen = reader.read_all(store.root, "demo", None, [])
    assert [manifest.iteration for manifest in seen] == [0, 1]
    commit = folder / "_commits" / "000001.json"
    commit.rename(tmp_path / "kept.json")
    with pytest.raises(DataError, match="the chain of 2 manifests is no beginning of the chain of 1"):
        reader.read_all(store.root, "demo", None, seen)
    (tmp_path / "kept.json").rename(commit)
    (folder / chain[0].policy.files[0].path).write_bytes(b"")
    with pytest.raises(DataError, match="0 bytes"):
        reader.read_all(store.root, "demo", None, seen)


def test_a_process_that_is_left_is_found_and_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(checks, "END_LIMIT_S", 0.2)
    mark = str(tmp_path)
    left = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], env={victims.MARK: mark})
    with pytest.raises(RoundFailed, match=rf"processes left:\n{left.pid}: .*time.sleep"):
        checks.check_no_process_left(mark)
    assert left.wait() == -9
    checks.check_no_process_left(mark)


@pytest.mark.parametrize("kind", ["file", "s3"])
def test_killed_and_frozen_drivers_of_the_commit_protocol_lose_and_double_nothing(kind, tmp_path, request, monkeypatch):
    monkeypatch.setenv("OPID_CACHE", str(tmp_path / "cache"))
    root, endpoint_url = str(tmp_path), None
    if kind == "s3":
        server = request.getfixturevalue("s3_server")
        root, endpoint_url = f"s3://{S3_BUCKET}/{tmp_path.name}", server.endpoint_url
    tally = protocol.run(kind, root, endpoint_url, 6, random.Random(2))
    assert tally.failures == []
    assert tally.kills >= 6
    assert tally.campaigns >= 1
