"""What a commit leaves at the Prefect server and at other trackers."""

from __future__ import annotations

import re
import sys
import types

import pytest
from prefect import flow, task
from prefect.artifacts import Artifact

from infra.store import local_folder, read_table
from opid_core.config import build_config
from opid_core.errors import InfrastructureError
from tasks.artifact import artifact_key, markdown, publish
from tasks.track import track
from tests.audited import Shape, make_campaign

CONFIG = {"campaign": "audited", "tracking": {"tensorboard": False, "wandb_project": "mine"}}


def metrics_of(store, manifest) -> dict[str, float]:
    rows = read_table(store, manifest.tables["metrics"]).to_pylist()
    return {row["name"]: row["value"] for row in rows if row["value"] is not None}


def test_the_artifact_says_what_was_committed_and_how_to_look_at_it(tmp_path):
    store, chain = make_campaign(tmp_path, 1, Shape(), degraded=0)
    text = markdown(store, chain[1], {"rollout/success_micro": 0.25, "routes/step": 1 / 3, "unknown": 7.0})
    assert text == (
        "# audited, iteration 0\n\n**Degraded:** `skills: 2 of 6 analyses failed`\n\n| | |\n|---|---|\n"
        "| rollouts won | 0.25 |\n| critical share (steps with a step skill) | 0.3333 |\n"
        f"| expectations held | 1 of 2 |\n\nCommitted to `{tmp_path}/audited`. Its audit page is written by\n\n"
        f"```\nopid audit audited@0 --root {tmp_path}\n```\n"
    )


def test_a_task_publishes_the_artifact_under_a_key_that_prefect_takes(tmp_path, prefect_server):
    store, chain = make_campaign(tmp_path, 1, Shape(), name="My_campaign.2")
    assert re.fullmatch(r"[a-z0-9-]+", artifact_key("My_campaign.2"))

    @flow
    def run() -> None:
        task(publish)(store, chain[1], metrics_of(store, chain[1]))

    run()
    found = Artifact.get("audit-my-campaign-2")
    assert found is not None
    assert found.data == markdown(store, chain[1], metrics_of(store, chain[1]))  # pyright: ignore[reportAttributeAccessIssue]


def test_without_a_run_nothing_is_published(tmp_path):
    store, chain = make_campaign(tmp_path, 1, Shape())
    publish(store, chain[1], {})


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


def test_a_fault_of_wandb_is_an_infrastructure_fault(tmp_path, wandb):
    store, chain = make_campaign(tmp_path, 1, Shape())
    config = build_config(CONFIG)
    track(config, store, chain)
    assert wandb == [(metrics_of(store, chain[-1]), 0)]
    with pytest.raises(InfrastructureError, match=r"^Weights & Biases: WandbError: HTTP 503$"):
        track(config, store, chain)


def test_a_place_that_takes_no_event_file_is_an_infrastructure_fault(tmp_path):
    store, chain = make_campaign(tmp_path, 1, Shape())
    (local_folder(store) / "tensorboard").write_text("no folder")
    with pytest.raises(InfrastructureError, match="tensorboard: cannot be written: "):
        track(build_config({"campaign": "audited"}), store, chain)
