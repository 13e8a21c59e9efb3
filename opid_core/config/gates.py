"""Section of the config about the gates: thresholds, the failure budget, expectations of the user's own."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from opid_core.sections import Section


class ExpectationConfig(Section):
    """An expectation of the user's own for one table."""

    table: Literal["steps", "trajectories", "skills", "routes", "scores", "metrics", "evaluations"]
    """The table that must meet it."""
    expectation: str = Field(pattern=r"^Expect[A-Za-z]+$")
    """Class of Great Expectations, such as `ExpectColumnValuesToBeBetween`."""
    arguments: dict[str, Any] = Field(default_factory=dict)
    """What that class is called with, such as `{column: reward, min_value: 0}`."""
    severity: Literal["fail", "warn"] = "fail"
    """`fail` keeps the iteration from being committed, `warn` is only recorded."""


class GatesConfig(Section):
    """What the tables of an iteration must meet beyond their form. No key changes what is trained."""

    min_coverage: float = Field(default=0.5, ge=0, le=1)
    """Of the analysed trajectories of each task type and outcome, at least this share must have an episode skill
    (failure budget, with `analyzer.max_failure_rate`)."""
    min_coverage_trajectories: int = Field(default=8, ge=1)
    """A task type and outcome with fewer analysed trajectories is not judged by `min_coverage`."""
    on_exhausted: Literal["stop", "degrade"] = "stop"
    """When the failure budget is exceeded in all `recovery.iteration_attempts`: stop the campaign, or make one more
    attempt that is committed whatever the budget says, marked as degraded."""
    max_duplicate_skills: float = Field(default=0.9, ge=0, le=1)
    """Warn above this share of skills whose text an earlier one has."""
    max_near_duplicate_skills: float = Field(default=0.5, ge=0, le=1)
    """Warn above this share of skills whose text is nearly that of an earlier one."""
    max_copied_words: int = Field(default=20, ge=1)
    """Warn of a skill that repeats more words in a row of what the policy was shown."""
    max_written_words: int = Field(default=8, ge=1)
    """A skill that repeats more words in a row of what the policy itself wrote, actions and what it was shown left
    out, quotes the response."""
    max_leaking_skills: float = Field(default=0.1, ge=0, le=1)
    """Each skill that holds a text which the environment forbids (a golden answer), or that quotes the response, is a
    warning; more than this share of either fails the gate."""
    max_skill_delta: float = Field(default=20.0, gt=0)
    """Warn of a step in which the skill moves a token's log-prob by more nats."""
    drift_iterations: int = Field(default=10, ge=0)
    """Compare the iteration's metrics with those of this many iterations before it; fewer than 5 compare nothing."""
    drift_deviations: float = Field(default=4.0, gt=0)
    """Warn of a metric this many standard deviations away from their mean."""
    placebo_iterations: int = Field(default=5, ge=2)
    """Warn when over so many iterations a kind of skill cannot be told from its placebo: the 95% interval of the mean
    of `signal/.../above_placebo` reaches 0. Such skills act by being there, not by what they say."""
    expectations: tuple[ExpectationConfig, ...] = ()
    """Expectations of your own, see docs/gates.md."""
    plugins: tuple[str, ...] = ()
    """Functions that return expectations of your own, as `module:function`, see docs/gates.md."""

    @field_validator("plugins")
    @classmethod
    def _module_and_function(cls, plugins: tuple[str, ...]) -> tuple[str, ...]:
        for plugin in plugins:
            module, _, function = plugin.partition(":")
            if not (function.isidentifier() and all(part.isidentifier() for part in module.split("."))):
                raise ValueError(f"{plugin!r} is not of the form module:function")
        return plugins
