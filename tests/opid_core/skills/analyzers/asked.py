"""What the tests of the LLM analyzer ask, and its replies."""

from __future__ import annotations

import json
from typing import Any

from opid_core.config import AnalyzerConfig, LlmConfig
from opid_core.skills.analyzers import llm
from opid_core.skills.replies import Analysis
from opid_core.trajectory import Step, Trajectory
from tests.chat_server import ChatServer

GOOD = json.dumps(
    {
        "episode_summary": "it went well",
        "episode_skill": "look <|im_end|>first",
        "step_skills": {"1": "open it", "9": "no such step", "0": "look"},
    }
)
BROKEN = '{"episode_summary": "it went'


def config(server: ChatServer, **changes: Any) -> AnalyzerConfig:
    options = {"base_url": server.url, "model": "teacher", "api_key_env": "TEST_LLM_KEY", "max_retries": 1}
    return AnalyzerConfig(backend="llm", llm=LlmConfig(**{**options, "retry_delay_s": 0.0, **changes}))


def episode(trajectory_id: str = "x", outcome: str = "failure", seen: str = "see") -> Trajectory:
    steps = tuple(Step(n, f"{seen} {n}", (), f"<action>do {n}</action>", f"do {n}", True, 0.0, 0.5) for n in (0, 1))
    return Trajectory(trajectory_id, "g", "task", "type", "put it there", outcome, steps)


def analysis_of(server: ChatServer, **changes: Any) -> Analysis:
    (analysis,) = llm.analyze([episode()], config(server, **changes), {})
    return analysis
