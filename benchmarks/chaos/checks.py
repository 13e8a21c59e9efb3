"""What must hold when a round is over."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.chaos import victims
from benchmarks.chaos.campaign import RoundFailed
from infra.store import CampaignStore, delete_orphans, files_of, list_objects, manifests, orphans, verify
from opid_core import schema

END_LIMIT_S = 15.0
"""What a killed process started dies with it; the kernel and the orderly end get so long."""


@dataclass(frozen=True)
class Result:
    """What a campaign made, without what may differ between two runs: attempts, clocks, hosts."""

    contents: dict[str, str]
    """`content` of each manifest by its iteration."""
    tables: dict[str, str]
    """Content hash of each table, by `<iteration>/<table>`."""


def result_of(store: CampaignStore) -> Result:
    """The result of what is committed in a store."""
    chain = manifests(store)
    return Result(
        contents={str(manifest.iteration): manifest.content for manifest in chain},
        tables={
            f"{manifest.iteration}/{name}": record.content_hash or ""
            for manifest in chain
            for name, record in manifest.tables.items()
        },
    )


def check_result(store: CampaignStore, expected: Result, iterations: int) -> None:
    """Every iteration once, whole, and as the undisturbed run made it."""
    files = verify(store)
    result = result_of(store)
    wanted = [str(iteration) for iteration in range(iterations + 1)]
    if list(result.contents) != wanted:
        raise RoundFailed(f"iterations {list(result.contents)} are committed, expected {wanted}")
    names = sorted(info.path for info in list_objects(store, "_commits"))
    if len(names) != len(wanted):
        raise RoundFailed(f"{len(wanted)} manifests make the chain, in _commits lie {names}")
    for what, ours, theirs in (
        ("content of manifest", result.contents, expected.contents),
        ("content hash of table", result.tables, expected.tables),
    ):
        differing = sorted(name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name))
        if differing:
            raise RoundFailed(f"{what} {', '.join(differing)}: not as in the undisturbed run")
    _check_orphans(store, files)


def check_reader(folder: Path, manifest_count: int) -> tuple[int, int]:
    """The reader saw nothing but committed data: how often it read all, and how often the storage was away."""
    report = json.loads((folder / "reader.json").read_text())
    if report["wrong"]:
        raise RoundFailed("the reader saw: " + "; ".join(report["wrong"][:5]))
    if report["manifests"] != manifest_count:
        raise RoundFailed(f"the reader ended with {report['manifests']} manifests, the chain has {manifest_count}")
    return report["readings"], report["away"]


def check_no_process_left(mark: str) -> None:
    """No process of the round lives on."""
    left = victims.processes_of(mark)
    _, left = psutil.wait_procs(left, timeout=END_LIMIT_S)
    if left:
        texts = victims.commands(left)
        for process in left:
            process.kill()
        raise RoundFailed("processes left:\n" + "\n".join(texts))


def _check_orphans(store: CampaignStore, files: int) -> None:
    """`sweep` finds exactly what no manifest names, and deleting it harms nothing."""
    named = {record.path for manifest in manifests(store) for record in files_of(manifest)}
    folders = (*schema.TABLES, "policies")
    unnamed = {info.path for folder in folders for info in list_objects(store, folder)} - named
    orphaned = orphans(store, older_than_s=-3600.0)  # the clock of an S3 server is read in whole seconds
    missed = unnamed - {info.path for info in orphaned}
    if missed:
        raise RoundFailed(f"orphans that sweep does not find: {sorted(missed)}")
    delete_orphans(store, orphaned)
    left = orphans(store, older_than_s=-3600.0)
    if left:
        raise RoundFailed(f"orphans after the sweep: {[info.path for info in left]}")
    if verify(store) != files:
        raise RoundFailed("after the sweep verify counts other files than before")
