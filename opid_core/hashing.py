"""Which configs are the same: hashes, and the keys that may change between runs of one campaign."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opid_core.config import CampaignConfig

MAY_DIFFER = (
    "iterations",
    "root",
    "storage",
    "tracking",
    "recovery",
    "gates",
    "analyzer.llm.base_url",
    "analyzer.llm.api_key_env",
    "analyzer.llm.timeout_s",
    "analyzer.llm.max_retries",
    "analyzer.llm.retry_delay_s",
    "analyzer.llm.concurrency",
    "analyzer.llm.prompt_price",
    "analyzer.llm.completion_price",
    "threads",
    "engine.max_concurrent",
    "engine.kv_cache_mib",
    "engine.gpu_memory_fraction",
    "learner.ranks",
    "learner.micro_batch_tokens",
    "learner.gradient_checkpointing",
)
"""Keys that may change between runs of one campaign: it may be extended, moved, and fitted to another machine.
Those from `threads` on change how sums are rounded: a continued campaign is then equal to an undisturbed one up to
that."""


def config_hash(config: CampaignConfig) -> str:
    """sha256 of the canonical JSON of the config."""
    return hashlib.sha256(canonical_json(config.model_dump(mode="json")).encode()).hexdigest()


def training_hash(config: CampaignConfig) -> str:
    """`config_hash` without the keys of `MAY_DIFFER`: equal for configs that train the same."""
    data = config.model_dump(mode="json")
    for key in MAY_DIFFER:
        *parents, last = key.split(".")
        section = data
        for parent in parents:
            section = section[parent]
        del section[last]
    return hashlib.sha256(canonical_json(data).encode()).hexdigest()


def canonical_json(value: Any) -> str:
    """One text for one value: sorted keys, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
