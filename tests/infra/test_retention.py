from __future__ import annotations

import json

import pytest

from infra import retention
from infra.objects import delete
from infra.store import (
    check_objects,
    folder_path,
    give_up_states,
    given_up,
    manifests,
    put_object,
    read_object,
    standing,
    verify,
    weights_only,
)
from infra.sweep import orphans
from opid_core.errors import DataError
from tests.infra.stored import make_chain, stored_paths


def states(store) -> list[str]:
    return [path for path in stored_paths(store, "policies") if "/optimizer/" in path]


def test_only_the_newest_optimizer_states_stay_and_all_weights(store, tmp_path):
    chain = make_chain(store, tmp_path, 4)
    every = [file.path for manifest in chain for file in manifest.policy.files if "/optimizer/" in file.path]
    assert len(every) == 4
    assert give_up_states(store, chain, keep=5) == 0
    assert give_up_states(store, chain, keep=4) == 0
    assert given_up(store) == set()
    assert give_up_states(store, chain, keep=2) == 2
    assert states(store) == every[2:]
    assert given_up(store) == set(every[:2])
    assert give_up_states(store, chain, keep=2) == 0  # nothing is left to do
    assert manifests(store) == chain
    assert [len(manifest.policy.files) for manifest in chain] == [2] * 4
    assert verify(store) == 4 * 4 - 2 == len(standing(store, chain))
    weights = [weights_only(manifest.policy) for manifest in chain]
    assert [file.path.rpartition("/")[2] for policy in weights for file in policy.files] == ["model.safetensors"] * 4
    assert (folder_path(store, weights[0], verify=True) / "model.safetensors").read_bytes() == b"weights"


def test_a_state_that_was_lost_is_not_taken_for_one_that_was_given_up(store, tmp_path):
    chain = make_chain(store, tmp_path, 3)
    give_up_states(store, chain, keep=2)
    delete([store.address(states(store)[0])])
    with pytest.raises(DataError, match=r"optimizer/state\.pt: missing"):
        verify(store)


def test_a_state_that_is_given_up_while_it_is_verified_is_not_missed(store, tmp_path):
    chain = make_chain(store, tmp_path, 3)
    records = standing(store, chain)
    give_up_states(store, chain, keep=1)
    seen = []
    assert check_objects(store, records, seen.append) == 3 * 4 - 2 == len(seen)
    delete([store.address(states(store)[0])])
    with pytest.raises(DataError, match=r"optimizer/state\.pt: missing"):
        check_objects(store, records)


def test_a_whole_policy_whose_state_was_given_up_cannot_be_continued_from(store, tmp_path, monkeypatch):
    monkeypatch.setenv("OPID_CACHE", str(tmp_path / "empty"))
    chain = make_chain(store, tmp_path, 2)
    give_up_states(store, chain, keep=1)
    monkeypatch.setenv("OPID_CACHE", str(tmp_path / "other"))
    with pytest.raises(DataError, match=r"optimizer/state\.pt: missing"):
        folder_path(store, chain[0].policy)


def test_killed_between_note_and_deletion(store, tmp_path, monkeypatch):
    chain = make_chain(store, tmp_path, 3)
    with monkeypatch.context() as patched:
        patched.setattr(retention.objects, "delete", lambda addresses: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            give_up_states(store, chain, keep=1)
    (first, *_) = states(store)
    assert given_up(store) == {first}
    assert len(states(store)) == 3
    assert verify(store) == 3 * 4 - 1
    assert [info.path for info in orphans(store, -3600.0)] == [first]  # `opid sweep` finds it
    assert give_up_states(store, chain, keep=1) == 2
    assert states(store) == [chain[2].policy.files[1].path]


def test_a_damaged_note_is_named(store, tmp_path):
    chain = make_chain(store, tmp_path, 2)
    give_up_states(store, chain, keep=1)
    assert json.loads(read_object(store, "_given_up/000000.json") or b"") == {"files": [chain[0].policy.files[1].path]}
    put_object(store, "_given_up/000000.json", b"{")
    with pytest.raises(DataError, match=r"_given_up/000000\.json"):
        verify(store)
