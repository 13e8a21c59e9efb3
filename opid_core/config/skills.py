"""Sections of the config about skills: who writes them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from opid_core.config.section import Section


class LlmConfig(Section):
    """An OpenAI-compatible endpoint for the analyzer. The key comes from the environment variable named here."""

    base_url: str = "http://127.0.0.1:8000/v1"
    """Address of the endpoint."""
    model: str = "default"
    """Model name to ask for."""
    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable that holds the key; it is never stored or logged."""
    temperature: float = Field(default=0.4, ge=0)
    """Sampling temperature of the analyzer."""
    max_tokens: int = Field(default=4096, ge=1)
    """Completion limit of one analysis."""
    timeout_s: float = Field(default=120.0, gt=0)
    """Time limit of one request."""
    max_retries: int = Field(default=3, ge=0)
    """Retries of transient errors (429, 5xx, time-outs)."""
    concurrency: int = Field(default=16, ge=1)
    """Requests in flight at once."""


class AnalyzerConfig(Section):
    """Where skills come from."""

    backend: Literal["hindsight", "llm"] = "hindsight"
    """`hindsight`: rules over the finished trajectories; `llm`: one call a trajectory to an endpoint."""
    max_step_skills: int = Field(default=5, ge=0)
    """At most this many step skills a trajectory."""
    failed_only: bool = False
    """Analyse failed trajectories only."""
    max_failure_rate: float = Field(default=0.1, ge=0, le=1)
    """More failed analyses than this share fail the iteration's gate."""
    selector_min_group_size: int = Field(default=2, ge=2)
    """Statistics selector: smallest state group."""
    selector_var_quantile: float = Field(default=0.75, ge=0, le=1)
    """Statistics selector: state groups at or above this quantile of return variance are eligible."""
    selector_top_k: int = Field(default=1, ge=0)
    """Statistics selector: critical steps a trajectory."""
    llm: LlmConfig = LlmConfig()
    """The endpoint (backend `llm`)."""
