"""What the tests of the LLM analyzer ask, and its replies."""

from __future__ import annotations

import json
from typing import Any

from opid_core.config import AnalyzerConfig, LlmConfig
from opid_core.samples import Samples
from opid_core.skills.analyzers import llm
from opid_core.skills.replies import Analysis
from tests.chat_server import ChatServer
from tests.opid_core.skills import episodes

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
    return AnalyzerConfig(backend="llm", llm=LlmConfig(**{**options, **changes}))


def episode(trajectory_id: str = "x", outcome: str = "failure", seen: str = "see") -> Samples:
    observations = {n: f"{seen} {n}" for n in (0, 1)}
    return episodes.episode(trajectory_id, ["do 0", "do 1"], outcome, observations, task_text="put it there")


def analysis_of(server: ChatServer, **changes: Any) -> Analysis:
    (analysis,) = llm.analyze(episode(), config(server, **changes))
    return analysis
