"""`auto` in a config: what it stands for, decided once, before a campaign's first commit.

The config that the campaign is stored with has what was decided, so all that comes later, here or on another machine,
takes it from there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from flows import number_type, prefix_sharing
from flows.number_type import TOLERANCE, TYPES
from infra.store import campaign_exists, find_campaign, location, read_config
from opid_core.config import CampaignConfig
from opid_core.errors import ConfigError, DataError

AUTO = "auto"

Choices: TypeAlias = Mapping[str, Mapping[str, str | float | bool]]
"""Values for a config, by section and key."""


def decided(
    config: CampaignConfig, tell: Callable[[str], None], *, folder: Path | None = None, card: str | None = None
) -> CampaignConfig:
    """`config` with what its `auto` stands for: see `choices`."""
    return with_choices(config, choices([config], tell, folder=folder, card=card))


def choices(
    configs: Sequence[CampaignConfig],
    tell: Callable[[str], None],
    *,
    folder: Path | None = None,
    card: str | None = None,
) -> Choices:
    """What `auto` stands for in `configs`, campaigns that have the same policy, learner and engine; empty where nothing
    is `auto`.

    The values are those that the first of the campaigns in the store has, else what is faster on this machine (or the
    `card` of a data sheet): the number type of the sections whose `dtype` is `auto`, and `learner.shared_prefixes`.
    With a `folder` it is about a policy that is only played, so `learner.shared_prefixes` stays as it is. Where
    bfloat16 was chosen, an `engine.canary_tolerance` too narrow for it becomes the stored one, else `TOLERANCE`. `tell`
    hears what was chosen, and why.

    Raises ConfigError for a policy that cannot be read, and where the campaign would run on a cluster; DataError for a
    store with another value; InfrastructureError where the store or the hub is away.
    """
    config = configs[0]
    sections = [section for section in TYPES if getattr(config, section).dtype == AUTO]
    shares = folder is None and config.learner.shared_prefixes == AUTO
    keys = [f"{section}.dtype" for section in sections] + ["learner.shared_prefixes"] * shares
    if not keys:
        return {}
    begun = next((one for one in configs if campaign_exists(one.root, one.campaign, one.storage.endpoint_url)), None)
    if begun is None and config.cluster.address is not None:
        raise ConfigError(
            f"{keys[0]}: auto is decided by what this machine measures, and the campaign would run on the nodes of "
            f"cluster.address; name what {' and '.join(keys)} {'is' if len(keys) == 1 else 'are'} there"
        )
    stored = None if begun is None else _stored(begun, keys)
    as_begun = "" if begun is None else f", as campaign {begun.campaign} began"
    chosen: dict[str, dict[str, str | float | bool]] = {}
    if sections:
        if stored is None:
            dtype, why = number_type.chosen(config, folder, card)
            types, tolerance = dict.fromkeys(sections, dtype), TOLERANCE
        else:
            types, why = {section: stored[f"{section}.dtype"] for section in sections}, None
            tolerance = stored["engine.canary_tolerance"]
        tell(f"dtype auto: {', '.join(map(' '.join, types.items()))}{f': {why}' if why else as_begun}")
        chosen = {section: {"dtype": dtype} for section, dtype in types.items()}
        if "bfloat16" in types.values() and config.engine.canary_tolerance < TOLERANCE / 2:
            chosen.setdefault("engine", {})["canary_tolerance"] = tolerance
    if shares:
        if stored is None:
            value, why = prefix_sharing.chosen(with_choices(config, chosen), card)
        else:
            value, why = stored["learner.shared_prefixes"], None
        tell(f"shared_prefixes auto: {str(value).lower()}{f': {why}' if why else as_begun}")
        chosen.setdefault("learner", {})["shared_prefixes"] = value
    return chosen


def with_choices(config: CampaignConfig, chosen: Choices) -> CampaignConfig:
    """`config` with what was `chosen`."""
    if not chosen:
        return config
    sections = {name: getattr(config, name).model_copy(update=values) for name, values in chosen.items()}
    return config.model_copy(update=sections)


def _stored(config: CampaignConfig, keys: Sequence[str]) -> dict[str, Any]:
    """Of the config that the campaign began with: these keys, and `engine.canary_tolerance`."""
    store = find_campaign(config.root, config.campaign, config.storage.endpoint_url)
    values = read_config(store)
    found: dict[str, Any] = {}
    for key in (*keys, "engine.canary_tolerance"):
        section, name = key.split(".")
        value = values.get(section, {}).get(name, False if name == "shared_prefixes" else None)  # it came later
        if name == "dtype":
            is_right, expected = value in TYPES[section], ", ".join(TYPES[section])
        elif name == "shared_prefixes":
            is_right, expected = isinstance(value, bool), "true, false"
        else:
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            is_right, expected = is_number and value > 0, "a number > 0"
        if not is_right:
            raise DataError(f"{location(store, 'config.json')}: {key}: expected {expected}, got {value!r}")
        found[key] = value
    return found
