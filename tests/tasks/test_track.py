"""What a commit leaves at the Prefect server and at other trackers."""

from __future__ import annotations

import sys
import types

import pytest
from prefect import flow
from prefect.artifacts import Artifact

from infra.store import local_folder, read_table
from opid_core.config import build_config
from opid_core.errors import InfrastructureError
from tasks.iteration import CampaignRun
from tasks.progress import artifact_key
from tasks.track import markdown, track, track_metrics
from tests.audited import Shape, make_campaign

tracked = flow(validate_parameters=False)(track_metrics)
CONFIG = {"campaign": "audited", "tracking": {"tensorboard": False, "wandb_project": "mine"}}


def metrics_of(store, manifest) -> dict[str, float]:
    rows = read_table(store, manifest.tables["metrics"]).to_pylist()
    return {row["name"]: row["value"] for row in rows if row["value"] is not None}


def test_the_artifact_says_what_was_committed_and_how_to_look_at_it(tmp_path):
    store, chain = make_campaign(tmp_path, 1, Shape(), degraded=1)
    text = markdown(store, chain[1], {"rollout/success_micro": 0.25, "routes/step": 1 / 3, "unknown": 7.0})
    assert text == (
        "# audited, iteration 1\n\n**Degraded:** `skills: 2 of 6 analyses failed`\n\n| | |\n|---|---|\n"
        "| rollouts won | 0.25 |\n| critical share (steps with a step skill) | 0.3333 |\n"
        f"| expectations held | 1 of 2 |\n\nIts manifest is `{tmp_path}/audited/_commits/000001.json`. Its audit "
        "page is written by\n\n"
        f"```\nopid audit audited@1 --root {tmp_path}\n```\n"
    )


def test_a_task_publishes_the_artifact_under_a_key_that_prefect_takes(tmp_path, prefect_server):
    store, chain = make_campaign(tmp_path, 1, Shape(), name="My_campaign.2")
    with CampaignRun(build_config({"campaign": store.campaign, "root": store.root}), store, chain):
        track(store.campaign, 1)
        track(store.campaign, 0)  # has none
    published = Artifact.get(artifact_key("audit", store.campaign))
    assert published is not None
    assert published.key == "audit-my-campaign-2"  # pyright: ignore[reportAttributeAccessIssue]
    assert published.data == markdown(store, chain[1], metrics_of(store, chain[1]))  # pyright: ignore[reportAttributeAccessIssue]


class WandbError(Exception):
    pass


@pytest.fixture
def wandb(monkeypatch) -> list[tuple[dict[str, float], int]]:
    """What is logged to W&B, in the place of the module, which is not installed: it takes the first alone."""
    logged: list[tuple[dict[str, float], int]] = []

    def log(metrics: dict[str, float], step: int) -> None:
        if logged:
            raise WandbError("HTTP 503")
        logged.append((metrics, step))

    run = types.SimpleNamespace(log=log, finish=lambda: None)
    module = types.SimpleNamespace(init=lambda **options: run, Error=WandbError)
    monkeypatch.setitem(sys.modules, "wandb", module)
    return logged


def test_a_fault_of_wandb_is_an_infrastructure_fault(tmp_path, prefect_server, wandb):
    store, chain = make_campaign(tmp_path, 1, Shape())
    config = build_config(CONFIG)
    tracked(config, store, chain[-1])
    assert wandb == [(metrics_of(store, chain[-1]), 1)]
    with pytest.raises(InfrastructureError, match=r"^Weights & Biases: WandbError: HTTP 503$"):
        tracked(config, store, chain[-1])


def test_a_folder_that_takes_no_event_file_is_an_infrastructure_fault(tmp_path, prefect_server):
    store, chain = make_campaign(tmp_path, 1, Shape())
    local_folder(store, "tensorboard").write_text("no folder")
    with pytest.raises(InfrastructureError, match="tensorboard: cannot be written: "):
        tracked(build_config({"campaign": "audited"}), store, chain[-1])
