from __future__ import annotations

import json

import pytest
from rich.filesize import decimal

from infra.store import open_campaign, put_object
from opid_core.errors import ConfigError, DataError
from tests.factories import CONFIG, make_chain, make_manifest, stored_paths


@pytest.fixture
def store(tmp_path):
    return open_campaign(tmp_path / "runs", "demo", CONFIG)


def test_verify_says_in_one_line_what_is_whole(store, opid, tmp_path):
    make_chain(store, tmp_path, 3)
    stored = (tmp_path / "runs" / "demo").rglob("*")
    size = sum(path.stat().st_size for path in stored if path.is_file() and path.suffix != ".json")
    assert opid("verify", "demo", "--root", store.root) == (
        f"{tmp_path}/runs/demo: whole: 12 files, {decimal(size)}, 2 iterations.\n"
    )


def test_verify_says_that_nothing_is_there_to_verify(store, opid, tmp_path):
    assert opid("verify", "demo", "--root", store.root) == f"{tmp_path}/runs/demo: nothing is committed yet.\n"


def test_verify_stops_at_the_first_bad_file(store, opid, tmp_path):
    chain = make_chain(store, tmp_path, 1)
    record = chain[0].tables["scores"]
    put_object(store, record.path, b"x" * record.size)
    with pytest.raises(DataError, match=f"{record.path}: damaged"):
        opid("verify", "demo", "--root", store.root)
    with pytest.raises(ConfigError, match="no campaign 'other'"):
        opid("verify", "other", "--root", store.root)


def test_verify_finds_an_edited_config(store, opid, tmp_path):
    put_object(store, "config.json", json.dumps(CONFIG, indent=1).encode())  # the same, written otherwise
    make_chain(store, tmp_path, 2)
    opid("verify", "demo", "--root", store.root)
    put_object(store, "config.json", json.dumps(CONFIG | {"iterations": 4}).encode())
    with pytest.raises(DataError, match=f"{tmp_path}/runs/demo/config.json: changed"):
        opid("verify", "demo", "--root", store.root)


def test_sweep_shows_what_it_would_delete_and_deletes_it_when_told(store, opid, tmp_path):
    chain = make_chain(store, tmp_path, 1)
    kept = stored_paths(store, "policies")
    sweep = ("sweep", "demo", "--root", store.root, "--older-than-h")
    assert opid(*sweep, 0, "--delete") == (f"{tmp_path}/runs/demo: no orphans older than 0 hours.\n")
    lost = make_manifest(store, tmp_path, chain[-1])
    text = opid(*sweep, 0)
    assert f"│ {lost.policy.uri} " in text
    assert text.splitlines()[-1].endswith(" to delete. Dry run: nothing was deleted.")
    assert len(stored_paths(store, "policies")) == 4
    assert opid(*sweep, 24, "--delete").startswith(f"{tmp_path}/runs/demo: no orphans")
    assert len(stored_paths(store, "policies")) == 4
    text = opid(*sweep, 0, "--delete")
    assert text.splitlines()[-1].startswith(f"{tmp_path}/runs/demo: deleted 4 files, ")
    assert stored_paths(store, "policies") == kept
