"""The configuration of a campaign: one file a group of sections."""

from opid_core.config.campaign import SEEDS, CampaignConfig
from opid_core.config.episodes import EngineConfig, EnvironmentConfig, EvaluationConfig, RolloutConfig
from opid_core.config.gates import ExpectationConfig, GatesConfig
from opid_core.config.learning import LearnerConfig, LoraConfig, WarmStartConfig
from opid_core.config.loading import build_config, load_config, load_rows, parse_overrides
from opid_core.config.presets import PRESETS, PRESETS_BY_ENVIRONMENT
from opid_core.config.prompting import PromptingConfig
from opid_core.config.running import ClusterConfig, NotifyConfig, RecoveryConfig, StorageConfig, TrackingConfig
from opid_core.config.skills import AnalyzerConfig, LlmConfig
from opid_core.sections import Section

__all__ = [
    "PRESETS",
    "PRESETS_BY_ENVIRONMENT",
    "SEEDS",
    "AnalyzerConfig",
    "CampaignConfig",
    "ClusterConfig",
    "EngineConfig",
    "EnvironmentConfig",
    "EvaluationConfig",
    "ExpectationConfig",
    "GatesConfig",
    "LearnerConfig",
    "LlmConfig",
    "LoraConfig",
    "NotifyConfig",
    "PromptingConfig",
    "RecoveryConfig",
    "RolloutConfig",
    "Section",
    "StorageConfig",
    "TrackingConfig",
    "WarmStartConfig",
    "build_config",
    "load_config",
    "load_rows",
    "parse_overrides",
]
