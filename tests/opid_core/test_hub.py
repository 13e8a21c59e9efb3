from __future__ import annotations

import json

import pytest

from opid_core import hub
from opid_core.errors import ConfigError, InfrastructureError
from opid_core.hub import HubModel, hub_model, pinned, policy_folder
from opid_core.policy_check import check_policy_folder
from tests.factories import make_tiny_policy_folder
from tests.infra.servers import hub as hub_server

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """An empty cache of the hub. What a process looked up it keeps: each test has a model of its own."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv(hub.USERS_OFFLINE, "0")
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    return monkeypatch


@pytest.mark.parametrize(
    ("policy", "model"),
    [
        ("Qwen/Qwen2.5-3B-Instruct", HubModel("Qwen/Qwen2.5-3B-Instruct")),
        ("Qwen/Qwen2.5-3B-Instruct@v1.0", HubModel("Qwen/Qwen2.5-3B-Instruct", "v1.0")),
        ("hf://org/name@refs/pr/1", HubModel("org/name", "refs/pr/1")),
        ("models", None),
        ("./org/name", None),
        ("../name", None),
        ("~/name", None),
        ("$HOME/name", None),
        ("/org/name", None),
        ("a/b/c", None),
    ],
)
def test_which_policies_are_models_of_the_hub(policy, model):
    assert hub_model(policy) == model


def test_a_folder_that_is_there_goes_before_a_model_of_its_name(monkeypatch, tmp_path):
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert hub_model("org/name") is None
    assert hub_model("hf://org/name") == HubModel("org/name")


@pytest.mark.parametrize("policy", ["hf://name", "hf://a/b/c", "hf://../b", "hf://a/b@", "hf://a/--help x"])
def test_an_address_of_no_model(policy):
    with pytest.raises(ConfigError, match=r"policy: hf://"):
        hub_model(policy)


def test_a_model_is_downloaded_once_texts_before_weights_and_found_offline(cache, tmp_path):
    base = make_tiny_policy_folder(tmp_path / "base", tied=True)
    (base / "original").mkdir()
    for name in ("original/params.json", "consolidated.safetensors", "pytorch_model.bin", "modeling_own.py"):
        (base / name).write_bytes(b"{}")
    with hub_server({"org/name": (COMMIT, base)}) as (url, asked):
        cache.setenv("HF_ENDPOINT", url)
        texts = policy_folder("org/name", weights=False)
        assert {file.suffix for file in texts.iterdir()} == {".json", ".jinja"}
        check_policy_folder(texts, weights=False)
        with pytest.raises(ConfigError, match="safetensors"):
            check_policy_folder(texts)
        folder = policy_folder("org/name")
        check_policy_folder(folder)
        assert folder == texts
        assert folder.name == COMMIT
        weights = "model.safetensors"
        assert (folder / weights).read_bytes() == (base / weights).read_bytes()
        assert not [
            name for name in ("original", "consolidated.safetensors", "pytorch_model.bin") if (folder / name).exists()
        ]
        assert not (folder / "modeling_own.py").exists()
        asked_before = len(asked)
        assert policy_folder("hf://org/name") == policy_folder(f"org/name@{COMMIT}") == folder
        assert pinned(HubModel("org/name")) == HubModel("org/name", COMMIT)
        assert not [line for line in asked[asked_before:] if "resolve" in line]
    cache.setenv(hub.USERS_OFFLINE, "1")
    assert policy_folder("org/name@main") == folder


def test_what_the_hub_does_not_have(cache, tmp_path):
    with hub_server({"org/missing": (COMMIT, tmp_path)}) as (url, _):
        cache.setenv("HF_ENDPOINT", url)
        with pytest.raises(ConfigError, match="policy: org/other"):
            policy_folder("org/other")
        with pytest.raises(ConfigError, match=r"policy: hf://org/missing@v2.*revision"):
            policy_folder("org/missing@v2")
    with pytest.raises(InfrastructureError, match=rf"policy: org/missing.*{url}\) cannot be reached"):  # it has ended
        policy_folder("org/missing")
    cache.setenv(hub.USERS_OFFLINE, "1")
    with pytest.raises(ConfigError, match=r"policy: org/missing.*hf download org/missing"):
        policy_folder("org/missing")


def test_policy_0_says_where_it_is_from(cache, tmp_path):
    from tasks.initial_policy import base_policy

    base = make_tiny_policy_folder(tmp_path / "base")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with hub_server({"org/base": (COMMIT, base)}) as (url, _):
        cache.setenv("HF_ENDPOINT", url)
        assert base_policy("org/base", scratch) == scratch
    assert json.loads((scratch / "base_model.json").read_text()) == {"name": "org/base", "revision": COMMIT}
    assert (scratch / "model.safetensors").read_bytes() == (base / "model.safetensors").read_bytes()
