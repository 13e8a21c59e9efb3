"""`opid reproduce`: run a committed iteration again, from what stood before it, and compare what comes out."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from flows import settings
from flows.cli.common import CampaignName, Endpoint, Root, app, console
from opid_core.errors import ConfigError, DataError
from opid_core.hashing import execution, with_execution

if TYPE_CHECKING:
    import pyarrow as pa

    from infra.manifest import Manifest
    from infra.store import CampaignStore
    from opid_core.config import CampaignConfig

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
"""What names a row, of whatever table."""
SHOWN_CHARS = 100


@dataclass(frozen=True)
class HashPair:
    """A table (or the weights) as it was committed and as it came out again: hashes, None where there is none."""

    name: str
    committed: str | None
    again: str | None

    @property
    def equal(self) -> bool:
        """Whether the same came out."""
        return self.committed == self.again


@app.command()
def reproduce(
    campaign: CampaignName,
    iteration: Annotated[int, typer.Option(min=1, help="The committed iteration to run again.")],
    root: Root = "runs",
    endpoint_url: Endpoint = None,
) -> None:
    """Run a committed iteration again from what stood before it and compare every table and the weights.

    The campaign is only read. Exit code 1 where anything differs.

    Example: [bold]opid reproduce quickstart --iteration 3[/]
    """
    from flows.reports.chains import index_of, read_chain
    from flows.reports.formatting import say
    from infra.scratch import scratch_folder
    from infra.store import location, read_config, read_table
    from opid_core.config import ClusterConfig, StorageConfig, build_config
    from tasks.places import gpus_of_replicas

    store, chain = read_chain(root, campaign, endpoint_url)
    index = index_of(store, chain, str(iteration))
    committed = chain[index]
    stored = build_config(read_config(store), location(store, "config.json"))
    gpus_of_replicas(as_committed(stored, committed))
    for note in notes(stored, committed):
        say(console, note)
    say(console, f"Running iteration {iteration} of {campaign} again, in a store of its own.")
    with scratch_folder() as scratch:
        settings.apply(scratch)  # Prefect's state too is made beside the campaign, never in it
        here = {"root": str(scratch), "storage": StorageConfig(background=False), "cluster": ClusterConfig()}
        config = as_committed(stored, committed).model_copy(update=here)
        copy = _copy_before(store, chain[:index], committed, config)
        again = _run(config, copy, chain[:index])
        pairs = compare(committed, again)
        table = Table("stage", "made", "committed", "again", "", title=f"{campaign}, iteration {iteration}")
        for pair in pairs:
            hashes = [value[:12] if value else "none" for value in (pair.committed, pair.again)]
            table.add_row(
                STAGES.get(pair.name, ""), pair.name, *hashes, "equal" if pair.equal else Text("different", "red")
            )
        console.print(table)
        different = [pair for pair in pairs if not pair.equal]
        for name in [pair.name for pair in different if pair.committed and pair.again and pair.name in again.tables]:
            one, other = read_table(store, committed.tables[name]), read_table(copy, again.tables[name])
            say(console, f"{name}: {first_difference(one, other)}")
    console.print("Not everything is equal." if different else "Everything is equal.", style="red" if different else "")
    if different:
        raise typer.Exit(1)


def compare(committed: Manifest, again: Manifest) -> list[HashPair]:
    """The two runs of an iteration, stage by stage. Wall-clock columns and metrics do not enter the hashes."""
    one, other = _hashes(committed), _hashes(again)
    names = [name for name in STAGES if name in one or name in other]
    names += sorted({*one, *other}.difference(STAGES))
    return [HashPair(name, one.get(name), other.get(name)) for name in names]


def notes(stored: CampaignConfig, manifest: Manifest) -> list[str]:
    """Why the iteration might come out otherwise, as far as that can be known before it runs."""
    from tasks.version import code_version

    reasons = []
    if code_version() != manifest.code_version:
        reasons.append(
            f"Another version of the program: this is {code_version()}, the iteration was made by "
            f"{manifest.code_version}."
        )
    given = execution(stored)
    if other := [f"{key}={value}" for key, value in manifest.execution.items() if value != given[key]]:
        reasons.append(f"With {', '.join(other)}, as the iteration was made: the stored config has other values.")
    if stored.analyzer.asks_model:
        reasons.append("The analyzer asks a model: its replies may differ.")
    return reasons


def first_difference(committed: pa.Table, again: pa.Table) -> str:
    """Where two tables of one schema first differ, in words: row and element of the first column that does."""
    from opid_core.schema import without_clock

    one, other = without_clock(committed), without_clock(again)
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


def _element(one: Any, other: Any) -> tuple[str, str, str]:
    """Of two lists of one length the first elements that differ, with their index; else the values; as short texts."""
    index = ""
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        number = next(n for n, (a, b) in enumerate(zip(one, other, strict=True)) if a != b)
        index, one, other = f"[{number}]", one[number], other[number]
    short = [text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]}..." for text in (repr(one), repr(other))]
    return index, short[0], short[1]


def _hashes(manifest: Manifest) -> dict[str, str | None]:
    from infra.manifest import weights_hash

    tables = {name: record.content_hash for name, record in manifest.tables.items()}
    return {**tables, "weights": weights_hash(manifest.policy)}


def as_committed(stored: CampaignConfig, manifest: Manifest) -> CampaignConfig:
    """The stored config, with the replicas, ranks and so on that `manifest`'s iteration was made with, and a length at
    which it is evaluated as it was: the campaign may have been extended since, or have ended later than first planned.
    Its gates let all pass that an iteration can have been committed with: they change nothing that is made, and those
    that it passed may have been milder than the stored ones, or have called code that is gone.

    Raises DataError for an execution of the manifest that no config can have.
    """
    from pydantic import ValidationError

    from infra.manifest import problems
    from opid_core.config import GatesConfig
    from tasks.places import visible_gpus
    from tasks.results import evaluation_due

    try:
        stored = with_execution(stored, manifest.execution)
    except ValidationError as error:
        raise DataError(f"manifest of iteration {manifest.iteration}: execution: {problems(error)}") from None
    # Who waits where does not change what is computed.
    engine = stored.engine.model_copy(update={"share_gpus": stored.engine.share_gpus and bool(visible_gpus())})
    stored = stored.model_copy(update={"gates": GatesConfig(max_leaking_skills=1.0), "engine": engine})
    wanted = manifest.tables["evaluations"].rows if "evaluations" in manifest.tables else 0
    for iterations in (stored.iterations, manifest.iteration, manifest.iteration + 1):
        config = stored.model_copy(update={"iterations": iterations})
        if evaluation_due(config, manifest.iteration) * config.evaluation.passes == wanted:
            return config
    return stored


def _copy_before(
    store: CampaignStore, before: Sequence[Manifest], iteration: Manifest, config: CampaignConfig
) -> CampaignStore:
    """A campaign of the same name under `config.root` that stands where `iteration` began: its config, the manifests
    `before` it, the skills of the last of them, and the two policies that it needs."""
    from infra.manifest import is_adapter, state_files, to_bytes
    from infra.store import (
        STATE_FOLDER,
        create_object,
        folder_path,
        key_of,
        open_campaign,
        pruned,
        put_folder,
        read_object,
        weights_only,
    )

    reference, policy = weights_only(before[0].policy), before[-1].policy
    if pruned(store).intersection(file.path for file in policy.files):
        raise ConfigError(
            f"iteration {len(before)} of {config.campaign} cannot be run again: the optimizer state that it began "
            "with was deleted for its space (storage.optimizer_states)"
        )
    policies = {folder.uri: folder for folder in (reference, policy)}
    made_twice = [iteration.policy] * 2  # as it is written, and as it is stored
    merged = [reference] if is_adapter(iteration.policy) else []
    needed = sum(file.size for policy in [*policies.values(), *made_twice, *merged] for file in policy.files)
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
        left_out = None if state_files(policy) else STATE_FOLDER
        put_folder(copy, folder_path(store, policy), uri, without=left_out)
    if (skills := before[-1].tables.get("skills")) is not None:  # `route` counts which texts are new
        create_object(copy, skills.path, read_object(store, skills.path) or b"")
    return copy


def _run(config: CampaignConfig, copy: CampaignStore, before: list[Manifest]) -> Manifest:
    from flows.campaign import run_iteration
    from flows.display import live_progress
    from flows.prefect_api import prefect_api
    from infra.interrupts import defer_interrupts
    from tasks.iteration import CampaignRun

    progress, run = live_progress(console, config, "start Prefect"), CampaignRun(config, copy, before)
    with progress, prefect_api(), defer_interrupts(), run:
        return run_iteration(config.campaign, len(before), 0, degrade=True)  # whatever the failure budget says
