from __future__ import annotations

import time
from pathlib import Path

import pytest

from infra.store import open_campaign
from opid_core.config import build_config
from tasks.context import Place
from tasks.initial_policy import initial_policy
from tests.tiny_policy import make_tiny_policy_folder

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("prefect_server")]


def test_a_policy_of_another_campaign_comes_without_its_optimizer_state(tmp_path):
    base = make_tiny_policy_folder(tmp_path / "policy")
    names = {path.name for path in base.iterdir()}
    (base / "optimizer").mkdir()
    (base / "optimizer" / "state.json").write_text("{}")
    config = build_config({"campaign": "demo", "root": str(tmp_path / "runs"), "policy": str(base)})
    store = open_campaign(config.root, config.campaign, config.model_dump(mode="json"))
    made = initial_policy(Place(config, store, "start", seed=1, parent="", attempt=0, since_s=time.monotonic()))
    assert made.policy is not None
    assert {Path(file.path).name for file in made.policy.folder.files} == names
    assert (base / "optimizer" / "state.json").exists()
