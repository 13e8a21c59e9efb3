from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.filesize import decimal

from flows.cli.sweep import show_sweep
from flows.cli.verify import show_verify
from infra.store import open_campaign, put_object
from opid_core.errors import ConfigError, DataError
from tests.infra.stored import CONFIG, make_chain, make_manifest, stored_paths


@pytest.fixture
def store(tmp_path):
    return open_campaign(tmp_path / "runs", "demo", CONFIG)


def printed(command, store, *options) -> str:
    output = io.StringIO()
    command(store.root, "demo", None, *options, Console(file=output, width=300))
    return output.getvalue()


def test_verify_says_in_one_line_what_is_whole(store, tmp_path):
    make_chain(store, tmp_path, 3)
    stored = (tmp_path / "runs" / "demo").rglob("*")
    size = sum(path.stat().st_size for path in stored if path.is_file() and path.suffix != ".json")
    assert printed(show_verify, store) == (f"{tmp_path}/runs/demo: whole: 12 files, {decimal(size)}, 2 iterations.\n")


def test_verify_stops_at_the_first_bad_file(store, tmp_path):
    chain = make_chain(store, tmp_path, 1)
    record = chain[0].tables["scores"]
    put_object(store, record.path, b"x" * record.size)
    with pytest.raises(DataError, match=f"{record.path}: damaged"):
        printed(show_verify, store)
    with pytest.raises(ConfigError, match="no campaign 'other'"):
        show_verify(store.root, "other", None, Console(file=io.StringIO()))


def test_sweep_shows_what_it_would_delete_and_deletes_it_when_told(store, tmp_path):
    chain = make_chain(store, tmp_path, 1)
    kept = stored_paths(store, "policies")
    assert printed(show_sweep, store, -3600, True) == (f"{tmp_path}/runs/demo: no orphans older than -1 hours.\n")
    lost = make_manifest(store, tmp_path, chain[-1])
    text = printed(show_sweep, store, -3600, False)
    assert f"│ {lost.policy.uri} " in text
    assert text.splitlines()[-1].endswith(" to delete. Dry run: nothing was deleted.")
    assert len(stored_paths(store, "policies")) == 4
    assert printed(show_sweep, store, 86400, True).startswith(f"{tmp_path}/runs/demo: no orphans")
    assert len(stored_paths(store, "policies")) == 4
    text = printed(show_sweep, store, -3600, True)
    assert text.splitlines()[-1].startswith(f"{tmp_path}/runs/demo: deleted 4 files, ")
    assert stored_paths(store, "policies") == kept
