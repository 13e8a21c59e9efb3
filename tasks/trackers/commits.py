"""What trackers get of a commit."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

import pyarrow as pa

from infra.manifest import FileRecord, Manifest
from infra.store import CampaignStore
from opid_core.config import CampaignConfig
from opid_core.endpoint import without_key
from opid_core.skills.effects import COLUMNS, effect_rows, skill_effects

SKILLS_SHOWN = 100
"""Of an iteration: those that gave most of the advantage."""
_SECRETS = ("WANDB_API_KEY", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")


@dataclass(frozen=True)
class Committed:
    """A commit of a campaign, as trackers show it."""

    config: CampaignConfig
    run: str
    """Name of the tracker's run: the same for all commits of a campaign, another for another one of its name."""
    iteration: int
    at_ms: int
    """When it was committed: the same whenever it is written."""
    metrics: dict[str, float]
    store: CampaignStore
    tables: Callable[[], dict[str, pa.Table]]
    """What `skill_effects` reads, as far as the commit has it."""

    @cached_property
    def skills(self) -> list[dict[str, Any]]:
        """Rows of `effect_rows`, most advantage first; none where no step was scored under a skill."""
        tables = self.tables()
        effects = skill_effects([(self.iteration, tables)]) if tables.keys() == COLUMNS.keys() else []
        return effect_rows(effects)[:SKILLS_SHOWN]

    @property
    def is_last(self) -> bool:
        """Whether the campaign is finished with it."""
        return self.iteration >= self.config.iterations


def committed(
    config: CampaignConfig,
    store: CampaignStore,
    chain: Sequence[Manifest],
    table: Callable[[FileRecord, Sequence[str]], pa.Table],
) -> Committed:
    """The newest commit of `chain`, its metrics without those that are undefined. `table` gives the columns of a table
    by its record."""
    manifest = chain[-1]
    rows = table(manifest.tables["metrics"], ["name", "value"]).to_pylist()
    return Committed(
        config=config,
        run=f"{store.campaign}-{chain[0].checksum[:8]}",
        iteration=manifest.iteration,
        at_ms=round(datetime.fromisoformat(manifest.created_at).timestamp() * 1000),
        metrics={row["name"]: row["value"] for row in rows if row["value"] is not None and math.isfinite(row["value"])},
        store=store,
        tables=lambda: {
            name: table(manifest.tables[name], columns) for name, columns in COLUMNS.items() if name in manifest.tables
        },
    )


def without_secrets(text: str) -> str:
    """`text` of a library in one line, without users and passwords of addresses and the keys of the environment."""
    text = " ".join(re.sub(r"://[^/\s]*@", "://", text).split())
    for name in _SECRETS:
        text = without_key(text, os.environ.get(name, ""))
    return text
