"""`opid export`: an iteration's tables as JSONL and its policy as an HF folder, for programs that know no OPID, and to
the Hugging Face hub."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.common import CampaignName, Endpoint, Root, app, console
from opid_core.errors import ConfigError

if TYPE_CHECKING:
    import pyarrow as pa

    from infra.manifest import Manifest
    from infra.store import CampaignStore

_BATCH_ROWS = 256  # that are Python's objects at a time: a step has thousands of token ids


@app.command()
def export(
    campaign: CampaignName,
    out: Annotated[Path | None, typer.Option(help="Folder to write; must not exist.")] = None,
    iteration: Annotated[str | None, typer.Option(help="A number, 0 is the start, or 'last' (the default).")] = None,
    push_to_hub: Annotated[
        str | None,
        typer.Option(metavar="ORG/NAME", help="Upload policy and model card to this model of the hub, in one commit."),
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="With --push-to-hub: a new model is private, a public one is refused.")
    ] = False,
    adapter: Annotated[bool, typer.Option("--adapter", help="With LoRA: the adapter alone, for PEFT.")] = False,
    root: Root = "runs",
    endpoint_url: Endpoint = None,
) -> None:
    """An iteration's tables as JSONL and the policy that it made as an HF folder with a model card, in a new folder; or
    the policy to the Hugging Face hub; or both. An adapter (LoRA) is merged into its base, unless asked for alone.

    To upload, log in with a token that may write: [bold]hf auth login[/], or HF_TOKEN. Tables are not uploaded;
    docs/export.md lists what is.

    Example: [bold]opid export quickstart --iteration 3 --out exported[/], or
    [bold]opid export quickstart --push-to-hub my-name/my-policy --private[/]
    """
    from flows.hub_upload import check_upload, upload
    from flows.reports.chains import index_of, read_chain
    from flows.reports.formatting import quantity, say
    from infra.manifest import is_adapter
    from infra.scratch import scratch_folder

    if out is None and push_to_hub is None:
        raise ConfigError("--out or --push-to-hub: name a new folder, a model of the hub, or both")
    if private and push_to_hub is None:
        raise ConfigError("--private: only what --push-to-hub makes can be private")
    if out is not None and out.exists():
        raise ConfigError(f"--out: {out} exists already; name a new folder")
    store, chain = read_chain(root, campaign, endpoint_url)
    chain = chain[: index_of(store, chain, iteration) + 1]
    manifest = chain[-1]
    if push_to_hub is not None:
        check_upload(push_to_hub, private=private)
    if adapter and not is_adapter(manifest.policy):
        raise ConfigError(f"--adapter: the policy after iteration {manifest.iteration} is none; leave it out")
    title, updates = f"{campaign}, iteration {manifest.iteration}", quantity(manifest.policy_version, "update")
    if out is not None:
        write_export(store, chain, out, adapter)
        tables = ", ".join(f"{name} ({record.rows})" for name, record in sorted(manifest.tables.items()))
        say(
            console,
            f"{title}: {out}\nTables, as <name>.jsonl (rows): {tables}\nThe policy after {updates}: {out / 'policy'}",
        )
    if push_to_hub is not None:
        with scratch_folder() as scratch:
            write_policy(store, chain, scratch / "policy", adapter)
            address = upload(scratch / "policy", push_to_hub, private=private, message=f"OPID: {title}")
        say(console, f"{title}: the policy after {updates}: {address}")


def write_export(store: CampaignStore, chain: Sequence[Manifest], out: Path, adapter: bool = False) -> None:
    """Write `<table>.jsonl`, `policy/` (as `write_policy`), `manifest.json` and `config.json` of the last commit in
    `chain` to the new folder `out`: all of it, or nothing. Every file is checked against its hash.

    Raises ConfigError where `out` exists or cannot be made, DataError that names a damaged file.
    """
    from flows.output import new_folder
    from infra.local_objects import faults
    from infra.manifest import to_bytes
    from infra.store import read_config, read_table

    manifest = chain[-1]
    with new_folder(out) as temporary:
        for name, record in manifest.tables.items():
            table = read_table(store, record)
            with faults(out, "written"):
                _write_jsonl(table, temporary / f"{name}.jsonl")
        write_policy(store, chain, temporary / "policy", adapter)
        with faults(out, "written"):
            (temporary / "manifest.json").write_bytes(to_bytes(manifest))
            config = json.dumps(read_config(store), indent=2, ensure_ascii=False)
            (temporary / "config.json").write_text(config + "\n", encoding="utf-8")


def write_policy(store: CampaignStore, chain: Sequence[Manifest], out: Path, adapter: bool = False) -> None:
    """Write the policy of the last commit in `chain`, without optimizer state, and its model card (`README.md`) to the
    new folder `out`: a policy that is an adapter merged into its base, or the `adapter` alone. Raises DataError that
    names a damaged file, InfrastructureError where `out` cannot be written."""
    from flows.reports import card
    from infra.local_objects import faults
    from infra.manifest import is_adapter
    from infra.store import folder_path, weights_only
    from tasks.policies import whole_policy

    policy = weights_only(chain[-1].policy)
    text = card.model_card(store, chain, adapter)
    folder_of = nullcontext(folder_path(store, policy)) if adapter else whole_policy(store, policy)
    with folder_of as folder, faults(out, "written"):
        names = [policy.name_of(file) for file in policy.files]
        if is_adapter(policy) and not adapter:
            names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
        for name in names:
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name, out / name)
        (out / card.FILE).write_text(text, encoding="utf-8")


def _write_jsonl(table: pa.Table, path: Path) -> None:
    """One JSON object a row. Floats are written as the doubles that they are exactly, so nothing is lost."""
    with open(path, "w", encoding="utf-8") as file:
        for batch in table.to_batches(max_chunksize=_BATCH_ROWS):
            for row in batch.to_pylist():
                file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
