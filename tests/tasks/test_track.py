"""What a commit leaves at the Prefect server."""

from __future__ import annotations

import re

from prefect import flow, task
from prefect.artifacts import Artifact

from infra.store import read_table
from tasks.artifact import artifact_key, markdown, publish
from tests.audited import Shape, make_campaign


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
