"""`opid export`: an iteration's tables as JSONL and its policy as an HF folder, for programs that know no OPID."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.common import CampaignName, Endpoint, Root, app, console
from opid_core.errors import ConfigError

if TYPE_CHECKING:
    import pyarrow as pa

    from infra.manifest import Manifest
    from infra.store import CampaignStore

_BATCH_ROWS = 256


@app.command()
def export(
    campaign: CampaignName,
    out: Annotated[Path, typer.Option(help="Folder to write; must not exist.")],
    iteration: Annotated[str | None, typer.Option(help="A number, 0 is the start; default: the newest.")] = None,
    root: Root = "runs",
    endpoint_url: Endpoint = None,
) -> None:
    """An iteration's tables as JSONL and the policy that it made as an HF folder, in a new folder.

    Example: [bold]opid export quickstart --iteration 3 --out exported[/]
    """
    from flows.reports.chains import index_of, read_chain
    from flows.reports.formatting import say

    if out.exists():
        raise ConfigError(f"--out: {out} exists already; name a new folder")
    store, chain = read_chain(root, campaign, endpoint_url)
    manifest = chain[index_of(store, chain, iteration)]
    write_export(store, manifest, out)
    tables = ", ".join(f"{name} ({record.rows})" for name, record in sorted(manifest.tables.items()))
    say(
        console,
        f"{campaign}, iteration {manifest.iteration}: {out}\nTables, as <name>.jsonl (rows): {tables}\n"
        f"The policy after {manifest.policy_version} updates: {out / 'policy'}",
    )


def write_export(store: CampaignStore, manifest: Manifest, out: Path) -> None:
    """Write `<table>.jsonl`, `policy/` (without optimizer state), `manifest.json` and `config.json` to the new folder
    `out`: all of it, or nothing. Every file is checked against its hash.

    Raises ConfigError where `out` exists or cannot be made, DataError that names a damaged file.
    """
    from infra.local_objects import faults
    from infra.manifest import to_bytes
    from infra.store import folder_path, new_attempt, read_config, read_table, weights_only

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
        folder = folder_path(store, policy)
        with faults(out, "written"):
            for file in policy.files:
                name = policy.name_of(file)
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
