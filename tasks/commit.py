"""Stage 7: the commit, which makes an iteration exist."""

from __future__ import annotations

import importlib.metadata
import math
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from prefect import task
from prefect.runtime import flow_run

from infra import store as campaign_store
from infra.manifest import START, Manifest, new_manifest
from opid_core.config import config_hash
from opid_core.schema import from_rows
from tasks.progress import report
from tasks.stage import RETRIES, Context, Policy, StageResult, merge, save

HEADLINES = ("rollout/success_m", "rollout/return", "evaluation/", "skills/coverage", "update/kl")
"""Metrics whose names begin so are in the manifest too; the table `metrics` holds all."""


def build_manifest(
    context: Context,
    policy: Policy,
    result: StageResult,
    parent: Manifest | None,
    *,
    created_at: datetime,
    code_version: str,
    prefect_run_id: str | None,
) -> Manifest:
    """The manifest of `context`'s iteration from its merged stage results. Pure.

    Raises DataError when `parent` is not the manifest of the iteration before.
    """
    return new_manifest(
        iteration=context.iteration,
        tables=result.tables,
        policy=policy.folder,
        gates=result.gates,
        config_hash=config_hash(context.config),
        code_version=code_version,
        seeds={"campaign": context.config.seed, "iteration": context.seed},
        prefect_run_id=prefect_run_id,
        metrics={name: value for name, value in _nulled(result.metrics).items() if name.startswith(HEADLINES)},
        created_at=created_at.isoformat(timespec="milliseconds"),
        previous=parent,
    )


def metric_rows(iteration: int, metrics: Mapping[str, float]) -> list[dict]:
    """Rows of the table `metrics`, sorted by name; an undefined number (nan) becomes null."""
    values = _nulled(metrics)
    return [{"iteration": iteration, "name": name, "value": values[name]} for name in sorted(values)]


@task(name="commit", **RETRIES)
def commit(context: Context, policy: Policy, results: Sequence[StageResult], parent: Manifest | None) -> Manifest:
    """Write the table `metrics` (iteration -1 at the start) and commit. Returns the manifest that stands: ours, or that
    of a run which was faster."""
    number = -1 if context.iteration == START else context.iteration
    metrics = from_rows("metrics", metric_rows(number, merge(*results).metrics))
    manifest = build_manifest(
        context,
        policy,
        merge(*results, save(context, "metrics", metrics, {}, iteration=number)),
        parent,
        created_at=datetime.now(UTC),
        code_version=code_version(),
        prefect_run_id=flow_run.id,
    )
    standing, won = campaign_store.commit(context.store, manifest)
    report(None if context.iteration == START else context.iteration, "committed", note=_note(standing, won))
    return standing


def code_version() -> str:
    """Version of the package and, in a git checkout, its commit (`+dirty` with uncommitted changes)."""
    version = importlib.metadata.version("opid")
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists() or shutil.which("git") is None:
        return version
    git = ["git", "-C", str(root), "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+dirty"]
    described = subprocess.run(git, capture_output=True, text=True, check=False)
    return f"{version} ({described.stdout.strip()})" if described.returncode == 0 else version


def _nulled(metrics: Mapping[str, float]) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else float(value) for name, value in metrics.items()}


def _note(manifest: Manifest, won: bool) -> str:
    shown = {
        name: value for name, value in manifest.metrics.items() if value is not None and name.endswith("success_micro")
    }
    numbers = "".join(f", {name.removesuffix('_micro')} {value:.1%}" for name, value in shown.items())
    return f"{manifest.iteration}: committed{'' if won else ' by another run, adopted'}{numbers}"
