from __future__ import annotations

import numpy as np
import pytest

from opid_core import schema
from opid_core.config import AnalyzerConfig, LlmConfig
from opid_core.errors import ConfigError
from opid_core.skills.analyzers import analyze, select_critical, step_returns
from opid_core.skills.replies import skills_table
from tests.chat_server import KEY, Answer, chat_server

CONFIG = AnalyzerConfig()


def tables(episodes: dict[str, tuple[str, list[tuple[str, str, float, bool]]]]):
    """(steps, trajectories) of episodes: id -> (outcome, [(observation, action, reward, is_valid)]); one group."""
    step_rows, trajectory_rows = [], []
    for trajectory_id, (outcome, decisions) in episodes.items():
        shared = {
            "campaign": "c",
            "iteration": 0,
            "group_id": "g",
            "trajectory_id": trajectory_id,
            "task_id": "t",
            "task_type": "type",
        }
        for number, (observation, action, reward, is_valid) in enumerate(decisions):
            step_rows.append(
                shared
                | {
                    "step": number,
                    "task_text": "put it there",
                    "observation": observation,
                    "admissible_actions": [],
                    "prompt_text": "p",
                    "prompt_ids": [1],
                    "history_dropped": 0,
                    "response_text": action,
                    "response_ids": [1],
                    "rollout_log_probs": [-1.0],
                    "action": action,
                    "is_valid": is_valid,
                    "reward": reward,
                    "done": number == len(decisions) - 1,
                    "truncated": False,
                    "policy_version": 0,
                    "seed": 0,
                }
            )
        summary = {"outcome": outcome, "return": 0.0, "steps": len(decisions), "tokens": 1, "seconds": 0.0}
        trajectory_rows.append(shared | summary | {"error": None})
    return schema.from_rows("steps", step_rows), schema.from_rows("trajectories", trajectory_rows)


STEPS, TRAJECTORIES = tables(
    {
        "won": ("success", [("room", "go to desk 1", 0.0, True), ("desk", "take mug 1 from desk 1", 10.0, True)]),
        "lost": ("failure", [("room", "look", 0.0, True), ("desk", "go to bed 1", 0.0, False)]),
        "bad": ("broken", [("room", "look", 0.0, True)]),
    }
)


def test_step_returns_are_discounted_and_penalised_whatever_the_order():
    assert step_returns(STEPS, 0.5, 0.25).tolist() == [5.0, 10.0, 0.0, -0.25, 0.0]
    order = [3, 1, 4, 0, 2]
    assert step_returns(STEPS.take(order), 0.5, 0.25).tolist() == [-0.25, 10.0, 0.0, 5.0, 0.0]


def test_critical_steps_come_from_the_selector_without_broken_episodes():
    returns = step_returns(STEPS, 0.5, 0.25)
    # room: 5, 0; desk: 10, -0.25 -> only desk is in the top quantile, and "lost" is below its mean there
    assert select_critical(STEPS, TRAJECTORIES, returns, CONFIG) == {"lost": [1]}
    order = [3, 1, 4, 0, 2]
    assert select_critical(STEPS.take(order), TRAJECTORIES, returns[order], CONFIG) == {"lost": [1]}


def test_analyze_runs_the_configured_backend_on_whole_groups():
    progress = []
    analyses = analyze(
        STEPS,
        TRAJECTORIES,
        CONFIG,
        gamma=0.5,
        penalty=0.25,
        on_progress=lambda done, total: progress.append((done, total)),
    )
    assert [a.trajectory_id for a in analyses] == ["won", "lost"]
    assert analyses[0].episode_skill == "Plan: go to desk, take mug."
    assert analyses[1].step_skills == {0: "Do now: go to desk 1", 1: "Do now: take mug 1 from desk 1"}
    assert progress == [(1, 1)]


def test_llm_backend_needs_its_key(monkeypatch):
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    remote = LlmConfig(base_url="https://llm.example.org/v1", api_key_env="NO_SUCH_KEY")
    config = AnalyzerConfig(backend="llm", llm=remote)
    with pytest.raises(ConfigError, match="NO_SUCH_KEY is not set"):
        analyze(STEPS, TRAJECTORIES, config, gamma=0.95, penalty=0.1)


def test_hindsight_stands_in_for_a_failed_model(monkeypatch):
    monkeypatch.setenv("TEST_LLM_KEY", KEY)

    def answer(body):
        skill = (
            '{"episode_skill": "from the model"}' if '"outcome": "success"' in body["messages"][1]["content"] else "no"
        )
        return Answer(content=skill)

    with chat_server() as server:
        server.answer = answer
        llm = LlmConfig(base_url=server.url, model="teacher", api_key_env="TEST_LLM_KEY")
        config = AnalyzerConfig(backend="llm_then_hindsight", llm=llm)
        won, lost = analyze(STEPS, TRAJECTORIES, config, gamma=0.5, penalty=0.25)
    assert (won.trajectory_id, won.analyzer, won.episode_skill, won.error) == ("won", "llm", "from the model", None)
    # the rules see the sibling that won, and the model's failure stays in the row
    by_rules = analyze(STEPS, TRAJECTORIES, CONFIG, gamma=0.5, penalty=0.25)[1]
    assert (lost.trajectory_id, lost.analyzer, lost.failed) == ("lost", "hindsight", False)
    assert (lost.episode_skill, lost.step_skills) == (by_rules.episode_skill, by_rules.step_skills)
    assert (lost.model, lost.attempts, lost.tokens, lost.raw_reply) == ("teacher", 2, 84, "no")
    assert lost.error == "the reply holds no JSON object; asked again: the reply holds no JSON object"
    assert not any(row["kind"] == "failed" for row in skills_table([won, lost], TRAJECTORIES).to_pylist())


def test_an_analysis_that_fails_twice_says_both_reasons():
    steps, trajectories = tables(
        {"won": ("success", [("room", "look", 0.0, False)])}
    )  # nothing is known to have worked
    llm = LlmConfig(base_url="http://127.0.0.1:9/v1", max_retries=0)
    config = AnalyzerConfig(backend="llm_then_hindsight", llm=llm)
    (analysis,) = analyze(steps, trajectories, config, gamma=0.5, penalty=0.25)
    assert analysis.failed
    assert (analysis.error or "").startswith("no connection: ")
    assert (analysis.error or "").endswith("; hindsight: no action of this success is known to have worked")
    assert [row["kind"] for row in skills_table([analysis], trajectories).to_pylist()] == ["failed"]


def test_returns_have_one_number_a_row():
    assert step_returns(STEPS, 0.95, 0.1).dtype == np.float32
