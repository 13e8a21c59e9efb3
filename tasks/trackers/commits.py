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
from opid_core.errors import DataError
from opid_core.skills.effects import COLUMNS, effect_rows, skill_effects

SKILLS_SHOWN = 100
"""Of an iteration: those that gave most of the advantage."""
SKILLS_CAUGHT_UP = 10
"""Of so many of the newest commits a tracker gets the skills: theirs are the large tables, of which one that begins
late would read all that the campaign has stored."""
_SECRETS = ("WANDB_API_KEY", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")


@dataclass(frozen=True)
class Committed:
    """A commit of a campaign, as trackers show it. Its tables are read when they are asked for."""

    config: CampaignConfig
    store: CampaignStore
    run: str
    """Name of the tracker's run: the same for all commits of a campaign, another for another one of its name."""
    manifest: Manifest
    has_skills: bool
    """Whether it is new enough for its skills to be shown."""
    table: Callable[[FileRecord, Sequence[str]], pa.Table]
    """Gives columns of a table by its record."""
    tell: Callable[[str], None]
    """Hears what the trackers go without, for a table that is damaged: they go on with later iterations."""

    @property
    def iteration(self) -> int:
        return self.manifest.iteration

    @property
    def at_ms(self) -> int:
        """When it was committed: the same whenever it is written."""
        return round(datetime.fromisoformat(self.manifest.created_at).timestamp() * 1000)

    @cached_property
    def metrics(self) -> dict[str, float]:
        """Those that are defined; none where their table is damaged."""
        try:
            rows = self.table(self.manifest.tables["metrics"], ["name", "value"]).to_pylist()
        except DataError as error:
            self._tell_damaged("metrics", error)
            return {}
        return {row["name"]: row["value"] for row in rows if row["value"] is not None and math.isfinite(row["value"])}

    @cached_property
    def skills(self) -> list[dict[str, Any]]:
        """Rows of `effect_rows`, most advantage first; none where no step was scored under a skill, or a table is
        damaged."""
        records = self.manifest.tables
        if not (self.has_skills and COLUMNS.keys() <= records.keys()):
            return []
        try:
            tables = {name: self.table(records[name], columns) for name, columns in COLUMNS.items()}
        except DataError as error:
            self._tell_damaged("skills", error)
            return []
        return effect_rows(skill_effects([(self.iteration, tables)]))[:SKILLS_SHOWN]

    @property
    def is_last(self) -> bool:
        """Whether the campaign is finished with it."""
        return self.iteration >= self.config.iterations

    def _tell_damaged(self, what: str, error: DataError) -> None:
        self.tell(
            f"{self.store.campaign}, iteration {self.iteration}: its {what} are left out of the trackers: {error}; put "
            "the file back from a copy: opid verify says when it is whole"
        )


def committed(
    config: CampaignConfig,
    store: CampaignStore,
    chain: Sequence[Manifest],
    table: Callable[[FileRecord, Sequence[str]], pa.Table],
    tell: Callable[[str], None],
) -> list[Committed]:
    """The commits of `chain`, which begins with the campaign's start, without that: the first is iteration 1."""
    run = f"{store.campaign}-{chain[0].checksum[:8]}"
    newest = len(chain) - SKILLS_CAUGHT_UP
    return [Committed(config, store, run, one, one.iteration >= newest, table, tell) for one in chain[1:]]


def without_secrets(text: str) -> str:
    """`text` of a library in one line, without users and passwords of addresses and the keys of the environment."""
    text = " ".join(re.sub(r"://[^/\s]*@", "://", text).split())
    for name in _SECRETS:
        text = without_key(text, os.environ.get(name, ""))
    return text
