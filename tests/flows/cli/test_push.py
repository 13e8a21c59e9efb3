"""`opid export --push-to-hub`: what a hub holds then, and what is refused before anything is uploaded."""

from __future__ import annotations

import pytest

from flows.hub_upload import upload
from infra.store import open_campaign
from opid_core import hub
from opid_core.errors import ConfigError, InfrastructureError
from tests.factories import CONFIG, START_ROWS, commit_rows
from tests.infra.servers import Repository, UploadHub, upload_hub


@pytest.fixture
def served(monkeypatch, tmp_path):
    """A hub that takes uploads, and the user's token for it."""
    with upload_hub() as served:
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        monkeypatch.setenv("HF_TOKEN", served.token)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
        monkeypatch.setenv(hub.USERS_OFFLINE, "0")
        yield served


@pytest.fixture
def push(tmp_path, opid):
    """Upload the start of a campaign; what is printed."""
    store = open_campaign(tmp_path / "runs", "demo", CONFIG)
    commit_rows(store, tmp_path, None, START_ROWS)

    def run(name: str, *options: object) -> str:
        return opid("export", "demo", "--root", store.root, "--push-to-hub", name, *options)

    return run


def changes(served: UploadHub) -> list[str]:
    """What was asked of the hub that changes it."""
    return [line for line in served.asked if not line.startswith("GET ")]


def test_a_policy_is_uploaded_with_its_card_in_one_commit(served, push, tmp_path):
    printed = push("lab/demo", "--private", "--out", tmp_path / "out")
    known = served.repositories["lab/demo"]
    assert known.private
    assert len(known.commits) == 2
    policy = tmp_path / "out" / "policy"
    names = ["README.md", "model.safetensors", "tokenizer.json"]
    assert known.commits[-1] == {".gitattributes": b"", **{name: (policy / name).read_bytes() for name in names}}
    assert [*served.stored.values()] == [b"weights 0"]
    assert f"demo, iteration 0: the policy after 0 updates: {served.url}/lab/demo/commit/2\n" in printed
    assert sum("/commit/" in line for line in served.asked) == 1


def test_what_an_earlier_upload_left_and_would_be_loaded_goes_in_the_same_commit(served, push, tmp_path):
    kept = {"LICENSE": b"mine", "config.json": b"{}"}
    left = {"model-00001-of-00002.safetensors": b"old", "model.safetensors.index.json": b"{}"}
    served.repositories["me/demo"] = Repository(commits=[kept | left | {"adapter_config.json": b"{}"}])
    push("me/demo")
    assert len(served.repositories["me/demo"].commits) == 2
    files = served.repositories["me/demo"].commits[-1]
    assert files.keys() == kept.keys() | {"README.md", "model.safetensors", "tokenizer.json"}
    assert not (tmp_path / "demo").exists()


@pytest.mark.parametrize("name", ["demo", "a/b/c", "me/demo@main", "../demo", "me/", "me/--x y"])
def test_no_name_of_a_model(served, push, name):
    with pytest.raises(ConfigError, match=r"^--push-to-hub: .*expected ORG/NAME"):
        push(name)
    assert served.asked == []


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("me/demo", {"role": "read"}, "may only read"),
        ("other/demo", {}, "makes models only for: me, lab$"),
        ("me/theirs", {}, "may not write to it"),
        ("me/demo", {"token": "hf_another-token"}, "refuses the token .HTTP 401."),
        ("me/" + "x" * 100, {}, "no name of a model"),
    ],
)
def test_what_the_hub_would_refuse_is_said_before_any_work(served, push, tmp_path, name, change, said):
    served.repositories["me/theirs"] = Repository(writable=False)
    mine = served.token
    for attribute, value in change.items():
        setattr(served, attribute, value)
    with pytest.raises(ConfigError, match=f"(?s)^--push-to-hub: {name}: .*{said}") as raised:
        push(name, "--out", tmp_path / "out")
    assert mine not in str(raised.value)
    assert changes(served) == []
    assert not (tmp_path / "out").exists()


def test_a_public_model_is_not_taken_for_a_private_one(served, push):
    served.repositories["me/demo"] = Repository(private=False)
    with pytest.raises(ConfigError, match=r"--private: the model exists and is public$"):
        push("me/demo", "--private")
    assert changes(served) == []


def test_without_a_token_or_a_hub(served, push, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ConfigError, match=r"no token of the hub: hf auth login"):
        push("me/demo")
    monkeypatch.setenv("HF_TOKEN", served.token)
    monkeypatch.setenv(hub.USERS_OFFLINE, "1")
    with pytest.raises(ConfigError, match="HF_HUB_OFFLINE"):
        push("me/demo")
    assert served.asked == []
    monkeypatch.setenv(hub.USERS_OFFLINE, "0")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(InfrastructureError, match=r"--push-to-hub: me/demo: the hub \(http://127.0.0.1:9\)"):
        push("me/demo")


@pytest.mark.parametrize("failing", ["/repos/create", "/commit/"])
def test_an_upload_that_is_refused_leaves_nothing_half_done(served, tmp_path, failing):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    served.failing = failing
    with pytest.raises(ConfigError, match=r"refuses the token .HTTP 403.*all or nothing$") as raised:
        upload(tmp_path, "me/demo", private=False, message="no")
    assert served.token not in str(raised.value)
    assert all(len(known.commits) == 1 for known in served.repositories.values())
    if failing == "/commit/":
        assert [*served.stored.values()] == [b"weights"]


def test_private_and_no_place_at_all(opid):
    with pytest.raises(ConfigError, match="--out or --push-to-hub"):
        opid("export", "demo")
    with pytest.raises(ConfigError, match="--private: only what --push-to-hub makes"):
        opid("export", "demo", "--out", "out", "--private")
