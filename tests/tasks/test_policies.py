"""From a policy's record to folders: all its weights, or an adapter and the start's. What is merged: test_lora.py."""

from __future__ import annotations

import errno
import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from infra import processes
from infra.groups import is_same_folder
from infra.manifest import weights_only
from infra.node_actor import NodeActor
from infra.store import commit, open_campaign, put_folder
from opid_core.config import LoraConfig
from opid_core.errors import DataError, InfrastructureError
from tasks.policies import MergedFolder, base_and_adapter, whole_policy
from tests.factories import CONFIG, all_files, make_chain, make_manifest, make_tiny_policy_folder


@pytest.fixture
def store(tmp_path):
    return open_campaign(tmp_path / "runs", "demo", CONFIG)


def stored_adapter(store, folder, uri="policies/000001/a"):
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(b"adapter")
    (folder / "adapter_config.json").write_text("{}")
    return put_folder(store, folder, uri)


@contextmanager
def merged_elsewhere(store, policy):
    """As a node of a cluster does it."""
    base, adapter = base_and_adapter(store, policy)
    assert adapter is not None
    merged = MergedFolder(store, adapter, base=base)
    path = merged.path()
    yield path
    merged.remove(path)


def test_an_adapter_stands_on_the_policy_of_the_start(store, tmp_path):
    start, second = make_chain(store, tmp_path, 2)
    adapter = stored_adapter(store, tmp_path / "adapter")
    assert base_and_adapter(store, adapter) == (weights_only(start.policy), adapter)
    assert base_and_adapter(store, second.policy) == (second.policy, None)
    with whole_policy(store, second.policy) as folder:
        assert folder == store.address(second.policy.uri)


@pytest.mark.parametrize("merged", [whole_policy, merged_elsewhere])
def test_what_is_missing_damaged_or_not_named_is_an_error(store, tmp_path, merged, monkeypatch):
    (temporary := tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    adapter = stored_adapter(store, tmp_path / "adapter")

    def refused(why: str) -> None:
        with pytest.raises(DataError, match=why), merged(store, adapter):
            pass

    refused(r"000000\.json: missing: a policy that is an adapter")
    (start,) = make_chain(store, tmp_path, 1)
    base, own = store.address(start.policy.uri), store.address(adapter.uri)
    (own / "model.safetensors").write_bytes(b"others")
    refused(r"000001/a/model\.safetensors: no manifest names it")
    (own / "model.safetensors").unlink()
    for path in (base / "model.safetensors", own / "adapter_model.safetensors"):
        whole = path.read_bytes()
        path.write_bytes(b"damaged")
        refused(rf"{path.name}")
        path.write_bytes(whole)
    assert list(temporary.iterdir()) == []


@pytest.mark.integration
def test_the_places_of_a_node_play_one_copy_of_merged_files_and_keep_it_until_they_are_told(
    store, tmp_path, monkeypatch
):
    from opid_core.learning.lora import adapt, save_adapter
    from opid_core.policies import load_model

    local = make_tiny_policy_folder(tmp_path / "policy")
    files = {path.name: path.read_bytes() for path in local.iterdir()}
    start, _ = commit(store, make_manifest(store, tmp_path, None, weights=files["model.safetensors"], files=files))
    (store.address(start.policy.uri) / "optimizer" / "state.pt").write_bytes(b"is not read")
    model = load_model(local, torch.float32)
    adapt(model, settings := LoraConfig(rank=4, alpha=8), seed=0)
    generator = torch.Generator().manual_seed(1)
    trained = {name: one for name, one in model.named_parameters() if one.requires_grad}
    drawn = {name: torch.randn(one.shape, generator=generator) for name, one in trained.items()}
    save_adapter(tmp_path / "adapter", drawn, settings, base=local)
    policy = put_folder(store, tmp_path / "adapter", "policies/000001/a")
    with whole_policy(store, policy) as folder:
        expected = {name: (folder / name).read_bytes() for name in all_files(folder)}
    assert expected["model.safetensors"] != files["model.safetensors"]

    (temporary := tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    monkeypatch.setattr(processes, "die_with_parent", lambda: None)  # an actor does, not this process
    merged, later = (MergedFolder(store, policy, base=base_and_adapter(store, policy)[0]) for _ in range(2))

    def is_full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(Path, "rename", is_full)
        with pytest.raises(InfrastructureError, match=re.escape(str(temporary))):
            merged.path()
    assert list(temporary.iterdir()) == []
    place, another = NodeActor(), NodeActor()

    def started(place: NodeActor) -> None:
        place.start("reader", "reader", "pathlib:Path", (merged,), {}, {}, 60.0)

    with ThreadPoolExecutor() as both:  # as two actors do, whose replicas start side by side
        list(both.map(started, (place, another)))
    kind, path, _ = place.run("reader", "absolute", (), {}, False)
    assert kind == "result"
    assert isinstance(path, Path)
    assert is_same_folder(merged, path)
    assert {name: (path / name).read_bytes() for name in all_files(path)} == expected
    assert place.run("reader", "samefile", (merged,), {}, False)[1] is True  # a second call merges nothing
    assert another.run("reader", "absolute", (), {}, False)[1] == path
    assert another.run("reader", "samefile", (later,), {}, False)[1] is False  # another push of the same policy
    for told in (merged, merged, later):
        place.forget(told)
        another.forget(told)
    for ended in (place, another):
        ended.kill("reader")
    assert list(temporary.iterdir()) == []
