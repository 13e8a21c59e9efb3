"""The configuration of a campaign: one YAML file, every field documented in its section, unknown keys refused.

Presets set the numbers in which the paper's text and its released code differ; a value written in the file wins.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, SerializeAsAny, field_validator, model_validator

from opid_core.config.episodes import EngineConfig, EnvironmentConfig, EvaluationConfig, RolloutConfig
from opid_core.config.gates import GatesConfig
from opid_core.config.learning import LearnerConfig, WarmStartConfig
from opid_core.config.presets import HELD_OUT, PRESETS, PRESETS_BY_ENVIRONMENT, merge
from opid_core.config.prompting import PromptingConfig
from opid_core.config.running import ClusterConfig, NotifyConfig, RecoveryConfig, StorageConfig, TrackingConfig
from opid_core.config.skills import AnalyzerConfig
from opid_core.learning import methods
from opid_core.learning.methods import Method, Opid
from opid_core.local_paths import root_path
from opid_core.sections import Section
from opid_core.wording import CAMPAIGN_NAME

SEEDS = 2**32
"""Seeds are below it: vLLM hands the campaign's to numpy, which refuses more, after minutes of work."""


class CampaignConfig(Section):
    """A campaign: a chain of iterations under one name in one store."""

    campaign: str = Field(pattern=CAMPAIGN_NAME)
    """Name of the campaign: its folder in the store."""
    root: str = "runs"
    """Root of the store: a folder (also as `file://`, with `~` or `$NAME`), or `s3://bucket/prefix`."""
    seed: int = Field(default=0, ge=0, lt=SEEDS)
    """All randomness derives from it. vLLM's engine takes no larger one."""
    iterations: int = Field(default=150, ge=0)
    """Length of the campaign."""
    preset: Literal["released", "paper"] = "released"
    """Numbers where the paper's text and its code differ: reward, penalty, baseline rule and normalisation; some follow
    the environment (see Presets)."""
    policy: str | None = None
    """Base policy: an HF folder (safetensors, tokenizer with it; `~` and `$NAME` may be in it), or a model of the
    Hugging Face hub: `ORG/NAME`, `ORG/NAME@REVISION` (where no such folder is), `hf://ORG/NAME`; null makes one by warm
    start."""
    threads: int = Field(default=2, ge=1)
    """CPU threads of engine and learner."""
    environment: EnvironmentConfig = EnvironmentConfig()
    rollout: RolloutConfig = RolloutConfig()
    engine: EngineConfig = EngineConfig()
    prompting: PromptingConfig = PromptingConfig()
    analyzer: AnalyzerConfig = AnalyzerConfig()
    method: Annotated[SerializeAsAny[Method], BeforeValidator(methods.from_keys)] = Opid()
    learner: LearnerConfig = LearnerConfig()
    warm_start: WarmStartConfig = WarmStartConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    tracking: TrackingConfig = TrackingConfig()
    notify: NotifyConfig = NotifyConfig()
    storage: StorageConfig = StorageConfig()
    cluster: ClusterConfig = ClusterConfig()
    recovery: RecoveryConfig = RecoveryConfig()
    gates: GatesConfig = GatesConfig()

    @property
    def bank_at_test(self) -> str | None:
        """File of the static skills that stand in the prompts of evaluations."""
        return self.evaluation.skill_bank or self.method.bank_at_test

    @field_validator("root")
    @classmethod
    def _known_store(cls, root: str) -> str:
        return root_path(root, "root")

    @model_validator(mode="after")
    def _policy_knows_its_prompts(self) -> Self:
        if self.policy is None and self.prompting != PromptingConfig():
            raise ValueError(
                "prompting: a warm start's policy knows the defaults alone; name a policy, or leave it out"
            )
        return self

    @model_validator(mode="after")
    def _learner_can_leave_shared_gpus(self) -> Self:
        if self.engine.share_gpus and self.learner.zero_stage == 3:
            raise ValueError(
                "engine.share_gpus: at learner.zero_stage 3 DeepSpeed takes nothing off a GPU for torch's AdamW; use "
                "0, 1 or 2, or set engine.share_gpus to false"
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _apply_preset(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        preset, world = data.get("preset", "released"), _name(data, "environment")
        if not isinstance(preset, str) or preset not in PRESETS:
            return data  # the fields' own checks say what is wrong with it, and with the environment's name
        by_environment = PRESETS_BY_ENVIRONMENT.get((preset, world), {}) if isinstance(world, str) else {}
        if isinstance(world, str) and world in HELD_OUT:
            by_environment = {**by_environment, "evaluation": {"split": HELD_OUT[world]}}
        method = methods.get(_name(data, "method") or methods.DEFAULT)
        numbers = merge(PRESETS[preset], by_environment)
        read = {key: value for key, value in numbers["method"].items() if key in method.model_fields}
        learner = merge(numbers.get("learner", {}), method.learner_defaults)
        return merge({**numbers, "method": read, "learner": learner}, data)


def _name(data: Mapping[str, Any], section: str) -> Any:
    given = data.get(section)
    return given.get("name") if isinstance(given, Mapping) else getattr(given, "name", None)
