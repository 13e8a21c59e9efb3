from __future__ import annotations

import json

import pytest

from infra.manifest import to_bytes
from infra.store import manifests, open_campaign, put_object, read_config
from opid_core.errors import ConfigError, DataError
from opid_core.schema import content_hash, from_rows
from tests.factories import CONFIG, START_ROWS, all_files, commit_rows, named_rows

HOSTILE = "\x00\x1b[2J\u2028\u0085\ufffd<script>\"'\\\r\n😀"


@pytest.fixture
def store(tmp_path):
    """A start and iteration 1, whose texts and numbers are awkward."""
    store = open_campaign(tmp_path / "runs", "demo", CONFIG)
    rows = named_rows()
    rows["steps"][0]["observation"] = HOSTILE
    rows["scores"][0]["old_log_probs"] = [-0.1, -1e-45]  # no short decimals of a 32-bit float
    start = commit_rows(store, tmp_path, None, START_ROWS)
    commit_rows(store, tmp_path, start, rows)
    return store


@pytest.fixture
def exported(store, opid):
    """What `opid export` prints."""

    def run(out, *options: str, campaign: str = "demo") -> str:
        return opid("export", campaign, "--root", store.root, "--out", out, *options)

    return run


def test_tables_come_back_whole_from_jsonl(store, exported, tmp_path):
    out = tmp_path / "deep" / "out"
    printed = exported(out)
    manifest = manifests(store)[-1]
    assert len(manifest.tables) == 7
    for name, record in manifest.tables.items():
        lines = (out / f"{name}.jsonl").read_text(encoding="utf-8").rstrip("\n").split("\n")
        assert len(lines) == record.rows
        assert content_hash(from_rows(name, [json.loads(line) for line in lines])) == record.content_hash
        assert f"{name} ({record.rows})" in printed
    assert f"demo, iteration 1: {out}\n" in printed
    assert exported(tmp_path / "again", "--iteration", "last").startswith("demo, iteration 1: ")


def test_the_policy_is_a_folder_without_optimizer_state(store, exported, tmp_path):
    out = tmp_path / "out"
    assert f"The policy after 0 updates: {out}/policy" in exported(out, "--iteration", "0")
    assert all_files(out) == [
        "config.json",
        "manifest.json",
        "metrics.jsonl",
        "policy/README.md",
        "policy/model.safetensors",
        "policy/tokenizer.json",
    ]
    assert (out / "policy" / "model.safetensors").read_bytes() == b"weights 0"
    assert (out / "manifest.json").read_bytes() == to_bytes(manifests(store)[0])
    assert json.loads((out / "config.json").read_text(encoding="utf-8")) == read_config(store)


def test_an_existing_folder_is_refused(store, exported, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(ConfigError, match=f"--out: {out} exists already; name a new folder"):
        exported(out)
    assert all_files(out) == []


@pytest.mark.parametrize("damaged", ["table", "weights"])
def test_a_damaged_file_leaves_nothing(store, exported, tmp_path, damaged):
    manifest = manifests(store)[-1]
    weights = next(file for file in manifest.policy.files if file.path.endswith(".safetensors"))
    record = manifest.tables["routes"] if damaged == "table" else weights
    put_object(store, record.path, b"x" * record.size)
    out = tmp_path / "exports" / "out"
    with pytest.raises(DataError, match=f"{record.path}: damaged"):
        exported(out)
    assert list(out.parent.iterdir()) == []


def test_what_is_not_there(store, exported, tmp_path):
    with pytest.raises(ConfigError, match="has no iteration '2'; committed: 0"):
        exported(tmp_path / "out", "--iteration", "2")
    with pytest.raises(ConfigError, match="no campaign 'nobody'"):
        exported(tmp_path / "out", campaign="nobody")
    assert not (tmp_path / "out").exists()


def test_a_place_that_cannot_be_written_is_named(store, exported, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=f"--out: {tmp_path}/file/out cannot be made: Not a directory"):
        exported(tmp_path / "file" / "out")
