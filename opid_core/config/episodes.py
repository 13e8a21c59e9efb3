"""Sections of the config about playing episodes: the world, the sampling, the engine, the evaluation."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from opid_core.sections import Section


class EnvironmentConfig(Section):
    """Which world, and the rules of an episode around it."""

    name: str = "alfworld"
    """alfworld, webshop, search_qa, scienceworld, gymnasium, textarena, openenv, or one of your own as `module:name`
    (docs/environments.md)."""
    options: dict[str, Any] = Field(default_factory=dict)
    """The environment's own options, checked by its own model."""
    max_steps: int = Field(default=30, ge=1)
    """An episode is truncated after this many actions."""
    history_length: int = Field(default=5, ge=0)
    """How many past (observation, action) pairs the prompt shows."""
    episode_timeout_s: float = Field(default=600.0, gt=0)
    """What the world's answers in one episode may take together; beyond it the episode is broken. The engine's time is
    not counted."""
    success_reward: float = Field(default=10.0, gt=0)
    """Reward of a won episode (`released`: 10, search_qa 1; `paper`: 1)."""
    invalid_action_penalty: float = Field(default=0.1, ge=0)
    """Taken off the score of each step whose response was malformed (`released`: 0.1, search_qa 0.01; `paper`: 0)."""
    train_split: str = "train"
    """Split whose tasks are sampled for training."""


class RolloutConfig(Section):
    """How episodes are sampled; the temperature is 1, as the PPO ratio needs it (an evaluation has its own)."""

    tasks_per_iteration: int = Field(default=16, ge=1)
    """Task instances (groups) an iteration."""
    group_size: int = Field(default=8, ge=1)
    """Episodes sampled for each task instance."""
    max_prompt_tokens: int = Field(default=2048, ge=16)
    """Longer prompts lose their oldest history first."""
    max_response_tokens: int = Field(default=512, ge=1)
    """Longest response."""
    loop: Literal["driver", "replicas"] = "driver"
    """Who runs the environments and prepares the turns, in evaluations too: the driver for all replicas, or each
    replica a process of its own for its groups, which large fleets need. The episodes are the same."""


class EngineConfig(Section):
    """The inference engine (vLLM): a process of its own, or several that share the episodes."""

    replicas: int = Field(default=1, ge=1)
    """Engines that share the episodes, each with GPUs of its own; on a CPU `threads` is divided among them."""
    tensor_parallel: int = Field(default=1, ge=1)
    """GPUs among which each replica's weights are divided; it must divide the model's heads and widths."""
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = "float32"
    """Number type of the engine's weights; `auto`: decided in the same way as `learner.dtype`."""
    max_concurrent: int = Field(default=128, ge=1)
    """Most sequences that a replica decodes at once."""
    kv_cache_mib: int = Field(default=512, ge=16)
    """Memory of a replica's KV cache in MiB (CPU only)."""
    gpu_memory_fraction: float = Field(default=0.4, gt=0, le=0.95)
    """Share of each of its GPUs' memory that a replica may take, its KV cache included (GPU only)."""
    share_gpus: bool = False
    """Whether engine and learner have the GPUs in turns: the engine sleeps while the learner works, and the learner
    waits in the machine's memory while the engine plays, so that `gpu_memory_fraction` may be about 0.85 (GPU only;
    `learner.zero_stage` 0 to 2). Off by default because it has not run on a GPU yet (docs/scale.md)."""
    canary_tolerance: float = Field(default=1e-3, gt=0)
    """Largest |log-prob gap| between engine and learner after a weight push, in nats; more stops the run.
    float32 engines stay below 1e-5; bfloat16 needs about 0.1, which less than 0.05 becomes where `auto` chose it."""


class EvaluationConfig(Section):
    """Success on a fixed panel of held-out tasks."""

    split: str = "valid_unseen"
    """Split the panel is taken from (by default `validation` for webshop, `dev` for scienceworld)."""
    more_splits: tuple[str, ...] = ()
    """Further splits that are evaluated too, each on a panel of its own of as many tasks. Reports name them; curves and
    comparisons of campaigns show `split`."""
    tasks: int = Field(default=128, ge=1)
    """Panel size: the first tasks of the split."""
    every: int = Field(default=10, ge=0)
    """Evaluate after every so many iterations; 0 evaluates only before the first and after the last."""
    temperatures: tuple[float, ...] = Field(default=(0.4,), min_length=1)
    """Sampling temperatures, each a full pass over the panel: 0 (greedy), or at least 0.01."""
    repetitions: int = Field(default=1, ge=1)
    """Passes over the panel at each temperature, with other draws each. Intervals take tasks, not episodes, as what
    was drawn."""
    final_tasks: int | None = Field(default=None, ge=1)
    """Panel size before the first and after the last iteration; null: `tasks`."""
    skill_bank: str | None = None
    """JSON file of static skills by task type, which stand in the prompt of every evaluated episode."""

    @property
    def splits(self) -> tuple[str, ...]:
        """All splits, in the order in which they are evaluated."""
        return (self.split, *self.more_splits)

    @property
    def passes(self) -> int:
        """How often the panel is played in one evaluation."""
        return len(self.splits) * len(self.temperatures) * self.repetitions

    @model_validator(mode="after")
    def _each_split_once(self) -> Self:
        if len({*self.splits}) < len(self.splits):
            raise ValueError("more_splits: each split once, and `split` is no further one")
        return self

    @field_validator("temperatures")
    @classmethod
    def _usable(cls, temperatures: tuple[float, ...]) -> tuple[float, ...]:
        if min(temperatures) < 0 or len({*temperatures}) < len(temperatures):
            raise ValueError("must be numbers of 0 or more, each once; `repetitions` is for more passes at the same")
        if too_cold := [temperature for temperature in temperatures if 0 < temperature < 0.01]:
            raise ValueError(
                f"{too_cold[0]:g} must be 0 or at least 0.01: vLLM plays 0.01 in place of what lies between"
            )
        return temperatures
