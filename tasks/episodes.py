"""What a config makes of an environment: the episodes that are trained on, and those that are evaluated."""

from __future__ import annotations

from collections.abc import Callable

from envs.base import Environment, make, validate_options
from opid_core.config import CampaignConfig
from opid_core.rollout.episodes import EpisodeSettings
from opid_core.skills.banks import skill_finder


def environment_maker(config: CampaignConfig) -> Callable[[], Environment]:
    """A function that makes one episode's environment after the other."""
    name = config.environment.name
    options = validate_options(name, config.environment.options)
    return lambda: make(name, options)


def training_settings(config: CampaignConfig) -> EpisodeSettings:
    """The rules of an episode that is trained on."""
    # Any other temperature would bias the PPO ratio: log-probs are at temperature 1 (ALGORITHM, section 1).
    return _settings(config, 1.0, config.method.bank_in_training)


def evaluation_settings(config: CampaignConfig, temperature: float) -> EpisodeSettings:
    """The rules of an evaluated episode."""
    return _settings(config, temperature, config.bank_at_test)


def episode_settings(config: CampaignConfig, temperature: float | None) -> EpisodeSettings:
    """The rules of an evaluated episode at `temperature`, or, where it is None, of one that is trained on."""
    return training_settings(config) if temperature is None else evaluation_settings(config, temperature)


def check_skill_banks(config: CampaignConfig) -> None:
    """Raise ConfigError for a skill bank that cannot be read or lacks a task type of the split that it is used on."""
    environment = environment_maker(config)()
    for split, settings in (
        (config.environment.train_split, training_settings(config)),
        *((split, evaluation_settings(config, 1.0)) for split in config.evaluation.splits),
    ):
        if settings.skill_of is not None:
            for task in environment.tasks(split):
                settings.skill_of(task)
    if bank := config.method.bank_of_teacher:
        skill_of = skill_finder(bank)
        for task in environment.tasks(config.environment.train_split):
            skill_of(task)


def _settings(config: CampaignConfig, temperature: float, skill_bank: str | None) -> EpisodeSettings:
    return EpisodeSettings(
        max_steps=config.environment.max_steps,
        history_length=config.environment.history_length,
        max_prompt_tokens=config.rollout.max_prompt_tokens,
        max_response_tokens=config.rollout.max_response_tokens,
        temperature=temperature,
        success_reward=config.environment.success_reward,
        timeout_s=config.environment.episode_timeout_s,
        skill_of=skill_finder(skill_bank) if skill_bank else None,
        prompting=config.prompting,
    )
