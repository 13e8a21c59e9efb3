"""Sections of the config about skills: who writes them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from opid_core.errors import ConfigError
from opid_core.sections import Section, WithoutSwitchWords, imported

BACKENDS = ("hindsight", "llm", "llm_then_hindsight")
"""The analyzers that come with OPID."""


OWN_OPTIONS = {"model", "messages", "temperature", "max_tokens", "max_completion_tokens", "response_format", "seed"}
OWN_OPTIONS |= {"n", "stream"}
"""Fields of a request that have keys of their own, or that change how the reply would have to be read."""


class LlmConfig(Section):
    """An OpenAI-compatible endpoint for the analyzer. The key comes from the environment variable named here."""

    base_url: str = Field(default="http://127.0.0.1:8000/v1", pattern=r"^https?://[^@?#\s]+$")
    """Address of the endpoint; it holds no key and no password."""
    model: str = "default"
    """Model name to ask for."""
    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable that holds the key; it is never stored or logged. A local address needs none."""
    temperature: float = Field(default=0.4, ge=0)
    """Sampling temperature of the analyzer."""
    max_tokens: int = Field(default=4096, ge=1)
    """Completion limit of one analysis."""
    request_options: Annotated[dict[str, Any], WithoutSwitchWords] = Field(default_factory=dict)
    """Further fields of each request, as the endpoint knows them: `{chat_template_kwargs: {enable_thinking: false}}`,
    `{reasoning_effort: low}`."""
    structured_output: Literal["auto", "on", "off"] = "auto"
    """Ask for JSON of a schema: `auto` does, until the endpoint refuses that; `off` leaves it to the prompt."""
    max_prompt_chars: int = Field(default=48_000, ge=4_000)
    """Longer episodes are cut by the rule in docs/analyzer.md; a token is about four characters."""
    show_group: bool = False
    """Show the model, with each step, what the other trajectories of the group did in the same state and how far from
    success it led them: hindsight's map. The paper's analyzer sees one trajectory alone."""
    timeout_s: float = Field(default=120.0, gt=0)
    """Time limit of one try of a request."""
    max_retries: int = Field(default=4, ge=0)
    """Retries of a request after a transient error (429, 5xx, no connection, time-out): after 0.5 s, 1 s, 2 s ... up to
    8 s, or as long as the endpoint says (at most two minutes)."""
    concurrency: int = Field(default=16, ge=1)
    """Requests in flight at once."""
    prompt_price: float | None = Field(default=None, ge=0)
    """Price of a million prompt tokens; null: unknown, and so are the costs."""
    completion_price: float | None = Field(default=None, ge=0)
    """Price of a million completion tokens."""

    @field_validator("request_options")
    @classmethod
    def _only_further_ones(cls, options: dict[str, Any]) -> dict[str, Any]:
        if taken := sorted(options.keys() & OWN_OPTIONS):
            raise ValueError(f"{taken[0]} is set by OPID itself")
        return options


class AnalyzerConfig(Section):
    """Where skills come from."""

    backend: str = "hindsight"
    """`hindsight`: rules over the finished trajectories; `llm`: one call a trajectory to an endpoint;
    `llm_then_hindsight`: the rules where the call gave no skill; or a function of your own as `module:name` (see
    docs/analyzer.md)."""
    max_step_skills: int = Field(default=5, ge=0)
    """At most this many step skills a trajectory."""
    failed_only_after: int | None = Field(default=None, ge=0)
    """Analyse failed trajectories only once so many iterations are completed (0: from the start; null: never)."""
    max_failure_rate: float = Field(default=0.1, ge=0, le=1)
    """More failed analyses than this share fail the iteration's gate."""
    selector_min_group_size: int = Field(default=2, ge=2)
    """Statistics selector: smallest state group."""
    selector_var_quantile: float = Field(default=0.75, ge=0, le=1)
    """Statistics selector: state groups at or above this quantile of return variance are eligible."""
    selector_top_k: int = Field(default=1, ge=0)
    """Statistics selector: critical steps a trajectory."""
    llm: LlmConfig = LlmConfig()
    """The endpoint (backends `llm` and `llm_then_hindsight`)."""

    @property
    def asks_model(self) -> bool:
        """Whether an endpoint is needed."""
        return self.backend in ("llm", "llm_then_hindsight")

    @field_validator("backend")
    @classmethod
    def _known_backend(cls, backend: str) -> str:
        if ":" not in backend and backend not in BACKENDS:
            raise ValueError(f"must be {', '.join(BACKENDS)}, or module:name for a function of your own")
        if ":" in backend and not callable(imported(backend, "analyzer.backend")):
            module, _, name = backend.rpartition(":")
            raise ConfigError(f"analyzer.backend: module {module!r} has no function {name!r}")
        return backend
