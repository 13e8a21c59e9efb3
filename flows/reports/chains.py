"""Reading a campaign's chain of commits: which commit a command means, its tables, and what every report computes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from infra.manifest import Manifest
from infra.objects import in_parallel, small_at_once
from infra.store import CampaignStore, find_campaign, location, manifests, read_table
from opid_core.errors import ConfigError
from opid_core.evaluation import SuccessRate, by_split, by_temperature, table_success

Tables = dict[str, pa.Table]
Panel = tuple[str, float]
"""Split and sampling temperature of an evaluation."""


@dataclass(frozen=True)
class Evaluated:
    """Success of one policy on one split at one temperature."""

    policy_version: int
    split: str
    temperature: float
    success: SuccessRate
    admissible: float
    """Share of actions that the world offered."""
    episodes: pa.Table = field(repr=False)
    """The rows of the table `evaluations`."""


def read_chain(root: str, campaign: str, endpoint_url: str | None = None) -> tuple[CampaignStore, list[Manifest]]:
    """The store of a campaign that exists, and its manifests, the start's first.

    Raises ConfigError that lists the campaigns under `root` where it is none of them.
    """
    store = find_campaign(root, campaign, endpoint_url)
    return store, manifests(store)


def index_of(store: CampaignStore, chain: Sequence[Manifest], iteration: str | None) -> int:
    """The index in `chain` of `iteration`, which is its number (`last` or None: the newest).

    Raises ConfigError that names the iterations that are committed.
    """
    if not chain:
        raise ConfigError(f"{location(store)}: nothing is committed yet")
    if iteration in (None, "last"):
        return len(chain) - 1
    if not iteration.isdecimal() or int(iteration) >= len(chain):
        raise ConfigError(
            f"iteration: {location(store)} has no iteration {iteration!r}; committed: 0 (the start) to {len(chain) - 1}"
        )
    return int(iteration)


def parse_commit(text: str) -> tuple[str, str | None]:
    """Campaign and iteration (None: the newest) of `CAMPAIGN` or `CAMPAIGN@ITERATION`. Raises ConfigError."""
    campaign, separator, iteration = text.partition("@")
    if not campaign or (separator and not iteration):
        raise ConfigError(f"{text!r}: expected CAMPAIGN or CAMPAIGN@ITERATION, as in quickstart@3 or quickstart@0")
    return campaign, iteration or None


def read_tables(store: CampaignStore, manifest: Manifest, names: Iterable[str] | None = None) -> Tables:
    """Those of the tables `names` (None: all) that the commit has: the start has no steps, and not every commit has an
    evaluation."""
    wanted = manifest.tables if names is None else names
    return {name: read_table(store, manifest.tables[name]) for name in wanted if name in manifest.tables}


def evaluations(store: CampaignStore, chain: Sequence[Manifest]) -> list[Evaluated]:
    """All evaluations of a campaign on its first split, by policy version and temperature."""
    return evaluations_by_split(store, chain)[0]


def evaluations_by_split(store: CampaignStore, chain: Sequence[Manifest]) -> tuple[list[Evaluated], list[Evaluated]]:
    """All evaluations of a campaign on its first split, and those on further ones, each as `evaluations`."""
    first: list[Evaluated] = []
    further: list[Evaluated] = []
    having = [manifest for manifest in chain if "evaluations" in manifest.tables]
    for manifest, table in zip(having, _read_of_each(store, having, "evaluations"), strict=True):
        for number, (split, of_split) in enumerate(by_split(table).items()):
            (further if number else first).extend(
                Evaluated(
                    policy_version=manifest.policy_version,
                    split=split,
                    temperature=temperature,
                    success=table_success(episodes),
                    admissible=sum(episodes.column("admissible_actions").to_pylist())
                    / max(1, sum(episodes.column("steps").to_pylist())),
                    episodes=episodes,
                )
                for temperature, episodes in by_temperature(of_split).items()
            )
    return first, further


def _read_of_each(store: CampaignStore, chain: Sequence[Manifest], name: str) -> list[pa.Table]:
    """The table `name` of each commit, which all have one."""
    at_once = small_at_once(store.address())
    return in_parallel(lambda manifest: read_table(store, manifest.tables[name]), chain, at_once)


def by_panel(evaluations: pa.Table) -> dict[Panel, pa.Table]:
    """The rows of an `evaluations` table by split, the first one's first, and temperature, coldest first."""
    return {
        (split, temperature): rows
        for split, of_split in by_split(evaluations).items()
        for temperature, rows in by_temperature(of_split).items()
    }


def first_and_last(evaluated: Sequence[Evaluated]) -> list[tuple[Evaluated, Evaluated]]:
    """The first and the last evaluation at each temperature that has several."""
    at: dict[float, list[Evaluated]] = {}
    for one in evaluated:
        at.setdefault(one.temperature, []).append(one)
    return [(several[0], several[-1]) for several in at.values() if len(several) > 1]


def metrics_of(table: pa.Table) -> dict[str, float | None]:
    """The table `metrics` by name."""
    return dict(zip(table.column("name").to_pylist(), table.column("value").to_pylist(), strict=True))


def mean_metrics(store: CampaignStore, chain: Sequence[Manifest]) -> dict[str, float]:
    """Means over iterations of the table `metrics`; an iteration where a number is missing is left out of its mean."""
    values: dict[str, list[float]] = {}
    for table in _read_of_each(store, chain[1:], "metrics"):
        for name, value in metrics_of(table).items():
            if value is not None:
                values.setdefault(name, []).append(value)
    return {name: float(np.mean(numbers)) for name, numbers in values.items()}
