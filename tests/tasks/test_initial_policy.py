from __future__ import annotations

from pathlib import Path

from infra.store import open_campaign
from opid_core.config import build_config
from tasks.context import Place
from tasks.initial_policy import initial_policy
from tests.tiny_policy import make_tiny_policy_folder


def test_a_policy_of_another_campaign_comes_without_its_optimizer_state(tmp_path):
    base = make_tiny_policy_folder(tmp_path / "policy")
    names = {path.name for path in base.iterdir()}
    (base / "optimizer").mkdir()
    (base / "optimizer" / "state.json").write_text("{}")
    config = build_config({"campaign": "demo", "root": str(tmp_path / "runs"), "policy": str(base)})
    store = open_campaign(config.root, config.campaign, config.model_dump(mode="json"))
    place = Place(config, store, "start", seed=1, parent="", attempt=0, since_s=0.0)
    made = initial_policy.__wrapped__.__wrapped__(place)  # type: ignore[attr-defined]
    assert {Path(file.path).name for file in made.policy.folder.files} == names
    assert (base / "optimizer" / "state.json").exists()
