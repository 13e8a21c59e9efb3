"""An analyzer that is away for a whole attempt, and one that fails for a few: tiny campaigns, a scripted endpoint."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from infra import stages
from tests.chat_server import Answer, ChatServer, chat_server
from tests.integration.campaigns import Campaign, finish, opened, same_content, start

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]


class Analyst:
    """Answers each episode with skills of its own, but for the first it ever sees: that one never. While `outage` says
    so, it answers no episode."""

    def __init__(self) -> None:
        self.never: str | None = None
        self.outage: Callable[[], bool] = lambda: False

    def __call__(self, body: dict[str, Any]) -> Answer:
        episode = json.dumps(body["messages"][:2])
        if len(body["messages"]) == 1:  # the check before the campaign
            return Answer(content="{}")
        if self.outage():
            return Answer(status=500, content="the analyzer is away")
        self.never = self.never or episode
        if episode == self.never:
            return Answer(content="I would rather not.")
        reply = {
            "episode_summary": "It was tried.",
            "episode_skill": f"Look into everything that is closed, {len(episode)} times.",
            "step_skills": {"0": "Open what stands next to you."},
        }
        return Answer(content=json.dumps(reply))


def run(root: Path, prefect_server: Mapping[str, str], server: ChatServer, policy: Path) -> Campaign:
    process = start(
        root,
        prefect_server,
        "iterations=1",
        f"policy={policy}",
        "rollout.tasks_per_iteration=4",
        "rollout.group_size=5",
        "learner.kl_coefficient=0",
        "evaluation.tasks=1",
        "recovery.iteration_attempts=2",
        "analyzer.backend=llm",
        f"analyzer.llm.base_url={server.url}",
        "analyzer.llm.concurrency=1",  # the same episode is the first in every run
        "analyzer.llm.max_retries=0",
    )
    return opened(root, finish(process, root))


def test_an_outage_fails_the_gate_and_leaves_no_trace_and_a_few_failures_are_rows(campaign, prefect_server, tmp_path):
    policy, analyst = campaign.policy(0), Analyst()
    with chat_server() as server:
        server.answer = analyst
        undisturbed = run(tmp_path / "undisturbed", prefect_server, server, policy)
        given_up = tmp_path / "outage" / "tiny" / "_stages" / "000001" / "000" / "failed.json"
        analyst.outage = lambda: not given_up.exists()
        retried = run(tmp_path / "outage", prefect_server, server, policy)

    skills = undisturbed.rows("skills", 1)
    failed = [row for row in skills if row["kind"] == "failed"]
    analyzed = {row["trajectory_id"] for row in skills}
    assert len(analyzed) == 20
    assert 1 <= len(failed) <= 2  # trajectories alike are asked about once
    assert {row["error"] for row in failed} == {
        "the reply holds no JSON object; asked again: the reply holds no JSON object"
    }
    (gate,) = [e for e in undisturbed.chain[1].gates["skills"].expectations if e.column == "failure"]
    assert (gate.passed, gate.observed) == (True, f"{len(failed)} of 20 rows")
    assert stages.failures(undisturbed.store, 1) == []

    (failure,) = stages.failures(retried.store, 1)
    assert failure["reason"].startswith("FailureBudgetExceeded: table skills: ")
    assert "on column failure failed (20 of 20 rows)" in failure["reason"]
    assert "HTTP 500: the analyzer is away" in failure["reason"]
    assert "1: attempt 1 given up: FailureBudgetExceeded" in retried.printed
    assert retried.chain[1].degraded == ()
    assert same_content(retried, undisturbed)
