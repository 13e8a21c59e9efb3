"""What a config makes of an environment: the episodes that are trained on, and those that are evaluated."""

from __future__ import annotations

from collections.abc import Callable

from envs.base import Environment, make, validate_options
from opid_core.config import CampaignConfig
from opid_core.errors import ConfigError
from opid_core.local_paths import shipped_configs
from opid_core.rollout.episodes import EpisodeSettings
from opid_core.skills.banks import GENERAL, load_skill_bank, skill_finder


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
    """Raise ConfigError for a skill bank that cannot be read, lacks a task type of the split that it is used on, or is
    of another environment."""
    environment, train_split = environment_maker(config)(), config.environment.train_split
    used = [(train_split, config.method.bank_in_training), (train_split, config.method.bank_of_teacher)]
    used += [(split, config.bank_at_test) for split in config.evaluation.splits]
    for split, path in used:
        if path is not None:
            skill_of, tasks = skill_finder(path), environment.tasks(split)
            for task in tasks:
                skill_of(task)
            _check_world(path, {task.task_type for task in tasks}, config.environment.name)


def _check_world(path: str, task_types: set[str], environment: str) -> None:
    """Raise ConfigError where a bank names task types, and none that the environment has: what it says of every task is
    meant for those."""
    named = load_skill_bank(path).keys() - {GENERAL}
    if not named or named & task_types:
        return
    configs = shipped_configs()
    banks = sorted((configs / "skill_banks").glob("*.json")) if configs else []
    worlds = [bank.stem for bank in banks if named <= load_skill_bank(bank).keys()]
    if environment not in worlds:  # a data source of the user's own may have a name that no bank knows
        of = f"it is a bank of {', '.join(worlds)}" if worlds else f"{environment} has {', '.join(sorted(task_types))}"
        raise ConfigError(
            f"{path}: a skill bank of another environment than {environment}, which has none of its task types "
            f"({', '.join(sorted(named))}); {of}"
        )


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
