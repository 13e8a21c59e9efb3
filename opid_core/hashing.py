"""Which configs are the same: hashes, and the keys that may change between runs of one campaign."""

from __future__ import annotations

import functools
import hashlib
import json
import operator
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opid_core.config import CampaignConfig

EXECUTION = (
    "threads",
    "engine.replicas",
    "engine.tensor_parallel",
    "engine.max_concurrent",
    "engine.kv_cache_mib",
    "engine.gpu_memory_fraction",
    "learner.ranks",
    "learner.micro_batch_tokens",
    "learner.gradient_checkpointing",
    "learner.shared_prefixes",
)
"""Keys that fit a campaign to a machine and change how sums are rounded: a campaign that is continued with others is
equal to an undisturbed one up to that. A manifest has the values that its iteration was made with, and no other keys:
to take one away here raises `manifest.FORMAT`."""

MAY_DIFFER = (
    "iterations",
    "root",
    "storage",
    "tracking",
    "notify",
    "cluster",
    "recovery",
    "gates",
    "analyzer.llm.base_url",
    "analyzer.llm.api_key_env",
    "analyzer.llm.timeout_s",
    "analyzer.llm.max_retries",
    "analyzer.llm.concurrency",
    "analyzer.llm.prompt_price",
    "analyzer.llm.completion_price",
    "rollout.loop",
    "engine.share_gpus",
    *EXECUTION,
)
"""Keys that may change between runs of one campaign: it may be extended, moved, and fitted to another machine."""

ABSENT = "(absent)"
"""In `config_differences`: a config without the key."""


def config_hash(config: CampaignConfig) -> str:
    """sha256 of the canonical JSON of the config."""
    return hashlib.sha256(canonical_json(config.model_dump(mode="json")).encode()).hexdigest()


def execution(config: CampaignConfig) -> dict[str, Any]:
    """The values of the keys of `EXECUTION`."""
    values = flat(config.model_dump(mode="json"))
    return {key: values[key] for key in EXECUTION}


def with_execution(config: CampaignConfig, values: Mapping[str, Any]) -> CampaignConfig:
    """The config with other `values` of keys of `EXECUTION`. Raises ValidationError for one out of bounds."""
    data = config.model_dump(mode="json")
    for key, value in values.items():
        section, last = _section_of(data, key)
        section[last] = value
    return type(config).model_validate(data)


def training_hash(config: CampaignConfig) -> str:
    """`config_hash` without the keys of `MAY_DIFFER`: equal for configs that train the same."""
    data = config.model_dump(mode="json")
    for key in MAY_DIFFER:
        section, last = _section_of(data, key)
        del section[last]
    return hashlib.sha256(canonical_json(data).encode()).hexdigest()


def _section_of(data: dict[str, Any], key: str) -> tuple[dict[str, Any], str]:
    """The mapping in which the dotted `key` stands, and its last part."""
    *parents, last = key.split(".")
    return functools.reduce(operator.getitem, parents, data), last


def config_differences(
    one: Mapping[str, Any], other: Mapping[str, Any], ignored: Sequence[str] = ()
) -> dict[str, tuple[Any, Any]]:
    """The keys in which two configs (plain data) differ, sorted, with both values; a key that one lacks is `ABSENT`
    there. Keys that are in `ignored`, or below one of them, do not count."""
    first, second = flat(one), flat(other)
    pairs = {key: (first.get(key, ABSENT), second.get(key, ABSENT)) for key in sorted({*first, *second})}
    return {
        key: pair
        for key, pair in pairs.items()
        if pair[0] != pair[1] and not any(key == name or key.startswith(f"{name}.") for name in ignored)
    }


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The keys of a config (plain data) as `section.key`, with their values."""
    keys: dict[str, Any] = {}
    for key, value in values.items():
        # An empty section is a value of its own: it has no keys that could stand for it.
        keys |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else {f"{prefix}{key}": value}
    return keys


def canonical_json(value: Any) -> str:
    """One text for one value: sorted keys, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
