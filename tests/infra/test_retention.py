"""Old optimizer states and orphans: what goes, what stays, and what a kill in between leaves."""

from __future__ import annotations

import json
import os

import pytest

from infra import retention, stages
from infra.lease import held, status
from infra.objects import delete
from infra.store import (
    check_objects,
    delete_orphans,
    folder_path,
    manifests,
    open_campaign,
    orphans,
    prune_states,
    pruned,
    put_object,
    read_object,
    standing,
    verify,
    weights_only,
)
from opid_core.errors import DataError
from tests.factories import CONFIG, all_files, make_chain, make_manifest, stored_paths

FUTURE = -3600.0
"""An age that every object has: older than one hour from now."""


def states(store) -> list[str]:
    return [path for path in stored_paths(store, "policies") if "/optimizer/" in path]


def orphan_paths(store) -> list[str]:
    return [info.path for info in orphans(store, FUTURE)]


def test_only_the_newest_optimizer_states_stay_and_all_weights(store, tmp_path):
    chain = make_chain(store, tmp_path, 4)
    every = [file.path for manifest in chain for file in manifest.policy.files if "/optimizer/" in file.path]
    assert len(every) == 4
    assert prune_states(store, chain, keep=5) == prune_states(store, chain, keep=4) == 0
    assert pruned(store) == set()
    assert prune_states(store, chain, keep=2) == 2
    assert states(store) == every[2:]
    assert pruned(store) == set(every[:2])
    assert prune_states(store, chain, keep=2) == 0  # nothing is left to do
    assert manifests(store) == chain
    assert verify(store) == 4 * 4 - 2 == len(standing(store, chain))
    weights = [weights_only(manifest.policy) for manifest in chain]
    assert [file.path.rpartition("/")[2] for policy in weights for file in policy.files] == ["model.safetensors"] * 4
    assert (folder_path(store, weights[0]) / "model.safetensors").read_bytes() == b"weights"


def test_policies_that_were_seen_to_are_not_looked_at_again(store, tmp_path):
    chain = make_chain(store, tmp_path, 4)
    assert prune_states(store, chain[:3], keep=2) == 1
    assert prune_states(store, chain, keep=2, done=2) == 0
    assert prune_states(store, chain, keep=2, done=1) == 1
    assert prune_states(store, chain, keep=1, done=2) == 1
    assert states(store) == [file.path for file in chain[3].policy.files if "/optimizer/" in file.path]


def test_a_state_that_was_lost_is_not_taken_for_one_that_was_pruned(store, tmp_path):
    chain = make_chain(store, tmp_path, 3)
    records = standing(store, chain)
    prune_states(store, chain, keep=1)
    seen = []
    assert check_objects(store, records, seen.append) == 3 * 4 - 2 == len(seen)  # pruned since they were read
    delete([store.address(states(store)[0])])
    for check in (lambda: check_objects(store, records), lambda: verify(store)):
        with pytest.raises(DataError, match=r"optimizer/state\.pt: missing"):
            check()


def test_a_whole_policy_whose_state_was_pruned_cannot_be_continued_from(store, tmp_path, monkeypatch):
    chain = make_chain(store, tmp_path, 2)
    prune_states(store, chain, keep=1)
    monkeypatch.setenv("OPID_CACHE", str(tmp_path / "empty"))
    with pytest.raises(DataError, match=r"optimizer/state\.pt: missing"):
        folder_path(store, chain[0].policy)


def test_killed_between_note_and_deletion(store, tmp_path, monkeypatch):
    chain = make_chain(store, tmp_path, 3)
    with monkeypatch.context() as patched:
        patched.setattr(retention.objects, "delete", lambda addresses: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            prune_states(store, chain, keep=1)
    (first, *_) = states(store)
    assert pruned(store) == {first}
    assert len(states(store)) == 3
    assert verify(store) == 3 * 4 - 1
    assert orphan_paths(store) == [first]  # `opid sweep` finds it
    assert prune_states(store, chain, keep=1) == 2
    assert states(store) == [chain[2].policy.files[1].path]


def test_a_damaged_note_is_named(store, tmp_path):
    chain = make_chain(store, tmp_path, 2)
    prune_states(store, chain, keep=1)
    assert json.loads(read_object(store, "_pruned/000000.json") or b"") == {"files": [chain[0].policy.files[1].path]}
    put_object(store, "_pruned/000000.json", b"{")
    with pytest.raises(DataError, match=r"_pruned/000000\.json"):
        verify(store)


def test_files_of_others_among_the_objects_are_passed_over(store, tmp_path):
    chain = make_chain(store, tmp_path, 2)
    prune_states(store, chain, keep=1)
    note = read_object(store, "_pruned/000000.json") or b""
    with held(store, 3):
        pass
    foreign = [".nfs000000000001", ".DS_Store", "000009.json~", "000001 (copy).json", ".Trash/000007.json"]
    for folder in ("_lease", "_pruned", "_stages/000002", "_stages/000002/000", "_commits", "policies/000001"):
        for name in foreign:
            put_object(store, f"{folder}/{name}", b"no JSON")
    assert pruned(store) == set(json.loads(note)["files"])
    with held(store, 3):
        assert (status(store) or pytest.fail("no lease"))[0].process_id == os.getpid()
    assert stages.current_attempt(store, 2) == 0
    assert orphan_paths(store) == [f"policies/000001/{name}" for name in sorted(foreign) if name[0] != "."]
    assert manifests(store) == chain
    verify(store)


def test_what_the_records_of_the_next_two_iterations_name_is_no_orphan(store, tmp_path):
    chain = make_chain(store, tmp_path, 2)
    named = {}
    for iteration in (2, 3, 4):  # of 3 the rollout may have been played while the policy of 2 was stored
        (record, _) = make_manifest(store, tmp_path, chain[-1]).tables.values()
        stages.record(store, iteration, 0, "rollout", {}, {"tables": {"steps": record.model_dump(mode="json")}})
        named[iteration] = record.path
    assert {named[2], named[3]}.isdisjoint(orphan_paths(store))
    assert named[4] in orphan_paths(store)


def test_what_no_manifest_names_is_found_and_deleted(store, tmp_path):
    chain = make_chain(store, tmp_path, 2)
    kept = stored_paths(store)
    lost = make_manifest(store, tmp_path, chain[-1])  # killed before its commit
    for path in ("_lease/000001.json", "_commits/notes.json", "report/summary.md"):  # never orphans
        put_object(store, path, b"{}")
        kept.append(path)
    assert orphan_paths(store) == sorted(record.path for record in [*lost.tables.values(), *lost.policy.files])
    assert orphans(store, 3600.0) == []  # too young
    delete_orphans(store, orphans(store, FUTURE))
    assert stored_paths(store) == sorted(kept)
    assert orphans(store, FUTURE) == []
    assert manifests(store) == chain


def test_what_a_stage_record_of_the_next_iteration_names_stays(store, tmp_path):
    chain = make_chain(store, tmp_path, 2)
    lost = make_manifest(store, tmp_path, chain[-1])
    result = {"tables": {"scores": lost.tables["scores"].model_dump()}, "policies": [lost.policy.model_dump()]}
    stages.record(store, 2, 0, "rescore", {}, result)
    assert orphan_paths(store) == [lost.tables["metrics"].path]
    stages.record(store, 1, 0, "rescore", {}, result)  # a record of a committed iteration counts no more
    delete([store.address("_stages/000002/000/rescore.json")])
    assert len(orphan_paths(store)) == 4


@pytest.mark.parametrize(
    ("path", "message"),
    [("_commits/000000.json", "not a manifest"), ("_stages/000001/0/rollout.json", "rollout.json: not valid JSON")],
)
def test_nothing_is_an_orphan_in_a_damaged_campaign(store, tmp_path, path, message):
    make_chain(store, tmp_path, 1)
    put_object(store, path, b"{")
    with pytest.raises(DataError, match=message):
        orphans(store, FUTURE)


def test_nothing_is_an_orphan_where_a_manifest_was_lost(store, tmp_path):
    make_chain(store, tmp_path, 4)
    delete([store.address("_commits/000001.json")])
    with pytest.raises(DataError, match=r"000001\.json: missing, although 000002\.json follows it"):
        orphans(store, FUTURE)


def test_temporary_files_of_killed_writes_are_orphans_on_a_disk(tmp_path):
    store = open_campaign(tmp_path / "runs", "demo", CONFIG)
    path = "scores/iteration=000000/attempt/.part-0.parquet.0123.tmp"
    left = tmp_path / "runs" / "demo" / path
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    found = orphans(store, FUTURE)
    assert [(info.path, info.size) for info in found] == [(path, 4)]
    delete_orphans(store, found)
    assert not (tmp_path / "runs" / "demo" / "scores").exists()  # no empty folders are left
    assert all_files(tmp_path / "runs" / "demo") == ["config.json"]
