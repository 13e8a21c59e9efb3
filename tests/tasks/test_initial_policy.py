from __future__ import annotations

from pathlib import Path

import pytest

from infra.store import open_campaign
from opid_core.config import build_config
from tasks.initial_policy import initial_policy
from tasks.iteration import CampaignRun
from tests.factories import make_tiny_policy_folder

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("prefect_server")]


def test_a_policy_of_another_campaign_comes_without_its_optimizer_state(tmp_path):
    base = make_tiny_policy_folder(tmp_path / "policy")
    names = {path.name for path in base.iterdir()}
    (base / "optimizer").mkdir()
    (base / "optimizer" / "state.json").write_text("{}")
    config = build_config({"campaign": "demo", "root": str(tmp_path / "runs"), "policy": str(base)})
    store = open_campaign(config.root, config.campaign, config.model_dump(mode="json"))
    with CampaignRun(config, store) as run:
        it = run.begin(0, 0)
        initial_policy("demo", 0, 0)
    assert {Path(file.path).name for file in it.next_policy.files} == names
    assert (base / "optimizer" / "state.json").exists()
