"""`opid export`: an iteration's tables as JSONL and its policy as an HF folder, for programs that know no OPID."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow as pa
from rich.console import Console

from flows.reports.chains import place_of
from infra.local_objects import faults
from infra.manifest import Manifest, to_bytes
from infra.store import (
    CampaignStore,
    find_campaign,
    folder_path,
    manifests,
    new_attempt,
    read_config,
    read_table,
    weights_only,
)
from opid_core.errors import ConfigError

_BATCH_ROWS = 256


def show_export(
    root: str, campaign: str, endpoint_url: str | None, iteration: str | None, out: Path, console: Console
) -> None:
    """Export `iteration` (`start` or a number; None: the newest) and print what is where."""
    if out.exists():
        raise ConfigError(f"--out: {out} exists already; name a new folder")
    store = find_campaign(root, campaign, endpoint_url)
    chain = manifests(store)
    manifest = chain[place_of(store, chain, iteration)]
    export(store, manifest, out)
    tables = ", ".join(f"{name} ({record.rows})" for name, record in sorted(manifest.tables.items()))
    console.print(
        f"{campaign}, iteration {manifest.iteration}: {out}\nTables, as <name>.jsonl (rows): {tables}\n"
        f"The policy after {manifest.policy_version} updates: {out / 'policy'}",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )


def export(store: CampaignStore, manifest: Manifest, out: Path) -> None:
    """Write `<table>.jsonl`, `policy/` (without optimizer state), `manifest.json` and `config.json` to the new folder
    `out`: all of it, or nothing. Every file is checked against its hash.

    Raises ConfigError where `out` exists or cannot be made, DataError that names a damaged file.
    """
    temporary = out.absolute().parent / f".{out.name}.{new_attempt()}.tmp"
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        raise ConfigError(f"--out: {out} cannot be made: {error.strerror}; name another folder") from None
    try:
        for name, record in manifest.tables.items():
            table = read_table(store, record)
            with faults(out, "written"):
                _write_jsonl(table, temporary / f"{name}.jsonl")
        policy = weights_only(manifest.policy)
        folder = folder_path(store, policy, verify=True)
        with faults(out, "written"):
            for file in policy.files:
                name = file.path.removeprefix(f"{policy.uri}/")
                (temporary / "policy" / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(folder / name, temporary / "policy" / name)
            (temporary / "manifest.json").write_bytes(to_bytes(manifest))
            config = json.dumps(read_config(store), indent=2, ensure_ascii=False)
            (temporary / "config.json").write_text(config + "\n", encoding="utf-8")
            if out.exists():
                raise ConfigError(f"--out: {out} was made by another program meanwhile; name a new folder")
            temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_jsonl(table: pa.Table, path: Path) -> None:
    """One JSON object a row. Floats are written as the doubles that they are exactly, so nothing is lost."""
    with open(path, "w", encoding="utf-8") as file:
        for batch in table.to_batches(max_chunksize=_BATCH_ROWS):
            for row in batch.to_pylist():
                file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
