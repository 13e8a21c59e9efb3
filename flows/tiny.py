"""A config made small: the same method on a generated world with a tiny policy, for a run on a CPU in minutes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from opid_core.config import CampaignConfig, build_config, parse_overrides
from opid_core.config.loading import on_top, read_config_file
from opid_core.errors import ConfigError
from opid_core.local_paths import shipped

KEPT = {
    "campaign": None,
    "root": None,
    "seed": None,
    "preset": None,
    "method": None,
    "analyzer": None,
    "environment": ("success_reward", "invalid_action_penalty"),
    "learner": (
        *("epochs", "clip_low", "clip_high", "dual_clip", "kl_coefficient", "entropy_coefficient", "aggregation"),
        "warmup_iterations",
    ),
    "evaluation": ("split", "more_splits", "skill_bank"),
}
"""What a config keeps: these sections whole, or these of their keys."""


def shrunk(config: CampaignConfig, overrides: Sequence[str] = ()) -> CampaignConfig:
    """`config` with the world, the policy and the sizes of `configs/tiny_<environment>.yaml`; what its method learns
    from stays, and how (`KEPT`). `overrides` come on top.

    Raises ConfigError where there is no such file.
    """
    small = shipped(Path(f"configs/tiny_{config.environment.name}.yaml"))
    if not small.is_file():
        known = sorted(path.stem.removeprefix("tiny_") for path in small.parent.glob("tiny_*.yaml"))
        raise ConfigError(f"--tiny: {small} is missing: there is a tiny world for {', '.join(known) or 'none here'}")
    whole = config.model_dump(mode="json")
    from_config = {
        section: whole[section] if keys is None else {key: whole[section][key] for key in keys}
        for section, keys in KEPT.items()
    }
    if config.environment.name == "search_qa":  # its generated questions have no split of Search-R1's names
        from_config["evaluation"] = {"skill_bank": whole["evaluation"]["skill_bank"]}
    return build_config(
        on_top(on_top(read_config_file(small), from_config), parse_overrides(overrides)), f"{small}, --tiny"
    )
