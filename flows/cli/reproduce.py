"""`opid reproduce`: run a committed iteration again, from what stood before it, and compare what comes out."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from rich.console import Console
from rich.table import Table

from flows import settings
from flows.reports.chains import place_of
from infra.manifest import START, Manifest, to_bytes, weights_hash
from infra.scratch import scratch_folder
from infra.store import (
    CampaignStore,
    create_object,
    find_campaign,
    folder_path,
    given_up,
    key_of,
    location,
    manifests,
    open_campaign,
    put_folder,
    read_config,
    read_table,
    weights_only,
)
from opid_core.config import CampaignConfig, StorageConfig, build_config
from opid_core.errors import ConfigError
from opid_core.hashing import MAY_DIFFER, config_hash

STAGES = {
    "steps": "rollout",
    "trajectories": "rollout",
    "skills": "extract_skills",
    "routes": "route",
    "scores": "rescore",
    "weights": "update",
    "evaluations": "evaluate",
    "metrics": "commit",
}
"""What is compared, in the order in which it is made, and the stage that makes it."""


KEYS = ("trajectory_id", "step", "skill_id", "task_id", "name")
SHOWN_CHARS = 100


@dataclass(frozen=True)
class Compared:
    """A table (or the weights) as it was committed and as it came out again: hashes, None where there is none."""

    name: str
    committed: str | None
    again: str | None

    @property
    def equal(self) -> bool:
        return self.committed == self.again


def compare(committed: Manifest, again: Manifest) -> list[Compared]:
    """The two runs of an iteration, stage by stage. Wall-clock columns and metrics do not enter the hashes."""
    one, other = _hashes(committed), _hashes(again)
    names = [name for name in STAGES if name in one or name in other]
    names += sorted({*one, *other}.difference(STAGES))
    return [Compared(name, one.get(name), other.get(name)) for name in names]


def show_reproduce(root: str, campaign: str, endpoint_url: str | None, iteration: int, console: Console) -> bool:
    """Run `iteration` of the campaign again in a store of its own, print the comparison, and say whether all is equal.

    The campaign is only read. Raises ConfigError for an unknown campaign or iteration.
    """
    store = find_campaign(root, campaign, endpoint_url)
    chain = manifests(store)
    place = place_of(store, chain, str(iteration))
    stored = build_config(read_config(store), location(store, "config.json"))
    for note in notes(stored, chain[place]):
        console.print(note, soft_wrap=True, highlight=False, markup=False)
    note = f"Running iteration {iteration} of {campaign} again, in a store of its own."
    console.print(note, soft_wrap=True, highlight=False, markup=False)
    with scratch_folder() as scratch:
        settings.apply(scratch)  # Prefect's state too is made beside the campaign, never in it
        config = as_committed(stored, chain[place]).model_copy(
            update={"root": str(scratch), "storage": StorageConfig()}
        )
        copy = _copy_before(store, chain[:place], chain[place], config)
        again = _run(config, copy, chain, place, console)
        found = compare(chain[place], again)
        table = Table("stage", "made", "committed", "again", "", title=f"{campaign}, iteration {iteration}")
        for row in found:
            hashes = [value[:12] if value else "none" for value in (row.committed, row.again)]
            table.add_row(STAGES.get(row.name, ""), row.name, *hashes, "equal" if row.equal else "[red]different[/]")
        console.print(table)
        for row in found:
            if not row.equal and row.committed and row.again and row.name in again.tables:
                one, other = read_table(store, chain[place].tables[row.name]), read_table(copy, again.tables[row.name])
                note = f"{row.name}: {first_difference(one, other)}"
                console.print(note, soft_wrap=True, highlight=False, markup=False)
    equal = all(row.equal for row in found)
    console.print("Everything is equal." if equal else "[red]Not everything is equal.[/]")
    return equal


def notes(stored: CampaignConfig, manifest: Manifest) -> list[str]:
    """Why the iteration might come out otherwise, as far as that can be known before it runs."""
    from tasks.version import code_version

    found = []
    if code_version() != manifest.code_version:
        found.append(
            f"Another version of the program: this is {code_version()}, the iteration was made by "
            f"{manifest.code_version}."
        )
    if config_hash(stored) != manifest.config_hash:
        found.append(
            "Another config than the stored one, which is used here, in keys that may differ between runs of a "
            f"campaign ({', '.join(MAY_DIFFER)}): threads, ranks and micro-batches change how sums are rounded."
        )
    if stored.analyzer.asks_model:
        found.append("The analyzer asks a model: its replies may differ.")
    return found


def first_difference(committed: pa.Table, again: pa.Table) -> str:
    """Where two tables of one schema first differ, in words: row and element of the first column that does."""
    one, other = _without_clock(committed), _without_clock(again)
    if one.num_rows != other.num_rows:
        return f"{one.num_rows} rows committed, {other.num_rows} again"
    for name in one.column_names:
        pairs = zip(one.column(name).to_pylist(), other.column(name).to_pylist(), strict=True)
        for row, (a, b) in enumerate(pairs):
            if a != b:
                keys = [f"{key} {one.column(key)[row].as_py()}" for key in KEYS if key in one.column_names]
                element, a, b = _element(a, b)
                return (
                    f"column {name}{element} first differs in row {row} ({', '.join(keys)}): committed {a}, again {b}"
                )
    return "the rows are equal; the manifest names another hash"


def _without_clock(table: pa.Table) -> pa.Table:
    """What `schema.content_hash` covers."""
    kept = table.select([f.name for f in table.schema if not (f.metadata or {}).get(b"volatile")])
    if "value" not in kept.column_names:
        return kept
    return kept.filter(pa.array([not name.endswith("_s") for name in kept.column("name").to_pylist()], pa.bool_()))


def _element(one: Any, other: Any) -> tuple[str, str, str]:
    """Of two lists of one length the first elements that differ, with their place; else the values; as short texts."""
    place = ""
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        number = next(n for n, (a, b) in enumerate(zip(one, other, strict=True)) if a != b)
        place, one, other = f"[{number}]", one[number], other[number]
    short = [text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]}..." for text in (repr(one), repr(other))]
    return place, short[0], short[1]


def _hashes(manifest: Manifest) -> dict[str, str | None]:
    tables = {name: record.content_hash for name, record in manifest.tables.items()}
    return {**tables, "weights": weights_hash(manifest.policy)}


def as_committed(stored: CampaignConfig, manifest: Manifest) -> CampaignConfig:
    """The stored config, with a length at which `manifest`'s iteration is evaluated as it was: the campaign may have
    been extended since, or have ended later than first planned."""
    from flows.iteration import evaluation_due

    assert manifest.iteration != START
    wanted = manifest.tables["evaluations"].rows if "evaluations" in manifest.tables else 0
    passes = len(stored.evaluation.temperatures) * stored.evaluation.repetitions
    for iterations in (stored.iterations, manifest.iteration + 1, manifest.iteration + 2):
        config = stored.model_copy(update={"iterations": iterations})
        if evaluation_due(config, manifest.iteration) * passes == wanted:
            return config
    return stored


def _copy_before(
    store: CampaignStore, before: Sequence[Manifest], iteration: Manifest, config: CampaignConfig
) -> CampaignStore:
    """A campaign of the same name under `config.root` that stands where `iteration` began: its config, the manifests
    `before` it, and the two policies that it needs."""
    reference, policy = weights_only(before[0].policy), before[-1].policy
    if given_up(store).intersection(file.path for file in policy.files):
        raise ConfigError(
            f"iteration {len(before) - 1} of {config.campaign} cannot be run again: the optimizer state that it began "
            "with was given up for its space (storage.optimizer_states)"
        )
    policies = {folder.uri: folder for folder in (reference, policy)}
    made_twice = [iteration.policy] * 2  # as it is written, and as it is stored
    needed = sum(file.size for policy in [*policies.values(), *made_twice] for file in policy.files)
    free = shutil.disk_usage(config.root).free
    if free < needed:
        raise ConfigError(
            f"{config.root}: {free / 2**20:.0f} MiB free, the policies need {needed / 2**20:.0f} MiB; set TMPDIR to a "
            "folder on a larger disk"
        )
    copy = open_campaign(config.root, config.campaign, config.model_dump(mode="json"))
    for manifest in before:
        create_object(copy, f"_commits/{key_of(manifest.iteration)}.json", to_bytes(manifest))
    for uri, policy in policies.items():
        put_folder(copy, folder_path(store, policy, verify=True), uri)
    return copy


def _run(config: CampaignConfig, copy: CampaignStore, chain: list[Manifest], place: int, console: Console) -> Manifest:
    from flows.campaign import run_next
    from flows.display import live_progress
    from flows.prefect_api import prefect_api
    from tasks import workers

    with prefect_api(), live_progress(config, console):
        try:
            return run_next(config, copy, chain[:place], 0, bool(chain[place].degraded), time.monotonic())
        finally:
            workers.close()
