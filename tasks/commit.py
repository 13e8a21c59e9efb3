"""Stage 7: the commit, which makes an iteration exist."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from prefect.runtime import flow_run

from infra import store as campaign_store
from infra.manifest import START, Manifest, new_manifest
from opid_core.hashing import config_hash
from opid_core.schema import from_rows
from tasks.context import Place, Policy, StageResult, merge
from tasks.gates.results import DRIFT_FLOORS
from tasks.progress import report
from tasks.stage import persistent, save
from tasks.version import code_version as running_version

HEADLINES = ("rollout/success_m", "rollout/return", "evaluation/", "skills/coverage", "update/kl", *DRIFT_FLOORS)
"""Metrics whose names begin so are in the manifest too; the table `metrics` holds all."""
TIMES = ("seconds/iteration_s", "seconds/overhead_s")
"""In the manifest too."""

WORK = ("push", "rollout", "rescore", "update", "evaluate")
"""Metrics `seconds/<name>_s` of what engine, environments and learner do; the rest of an iteration is overhead."""


def build_manifest(
    place: Place,
    policy: Policy,
    result: StageResult,
    parent: Manifest | None,
    *,
    created_at: datetime,
    code_version: str,
    prefect_run_id: str | None,
) -> Manifest:
    """The manifest of `place`'s iteration from its merged stage results. Pure.

    Raises DataError when `parent` is not the manifest of the iteration before.
    """
    return new_manifest(
        iteration=place.iteration,
        tables=result.tables,
        policy=policy.folder,
        gates=result.gates,
        config_hash=config_hash(place.config),
        preset=place.config.preset,
        code_version=code_version,
        seeds={"campaign": place.config.seed, "iteration": place.seed},
        prefect_run_id=prefect_run_id,
        metrics={n: value for n, value in result.metrics.items() if n.startswith(HEADLINES) or n in TIMES},
        created_at=created_at.isoformat(timespec="milliseconds"),
        previous=parent,
        degraded=[f"{gate.table}: {reason}" for gate in result.gates for reason in gate.degraded],
    )


def metric_rows(iteration: int, metrics: Mapping[str, float | None]) -> list[dict]:
    """Rows of the table `metrics`, sorted by name."""
    return [{"iteration": iteration, "name": name, "value": metrics[name]} for name in sorted(metrics)]


def times(results: Sequence[StageResult], iteration_s: float) -> dict[str, float]:
    """Seconds of the iteration, and of it what is neither engine, environments nor learner (stages that were reused
    from an interrupted run took none)."""
    work_s = sum(
        result.metrics.get(f"seconds/{name}_s") or 0.0 for result in results if not result.reused for name in WORK
    )
    return dict(zip(TIMES, (iteration_s, iteration_s - work_s), strict=True))


@persistent("commit")
def commit(
    place: Place,
    policy: Policy,
    results: Sequence[StageResult],
    parent: Manifest | None,
    history: Sequence[Mapping[str, float | None]] = (),
) -> Manifest:
    """Write the table `metrics` (iteration -1 at the start) and commit. Returns the manifest that stands: ours, or that
    of a run which was faster. `history`: metrics of the iterations before, oldest first, to see drift."""
    number = -1 if place.iteration == START else place.iteration
    taken = times(results, time.monotonic() - place.since_s)
    result = merge(*results, StageResult(metrics=taken))
    metrics = from_rows("metrics", metric_rows(number, result.metrics))
    manifest = build_manifest(
        place,
        policy,
        merge(result, save(place, "metrics", metrics, {}, iteration=number, history=history)),
        parent,
        created_at=datetime.now(UTC),
        code_version=running_version(),
        prefect_run_id=flow_run.id,
    )
    standing, won = campaign_store.commit(place.store, manifest)
    report(place.iteration, "committed", note=_note(standing, won))
    return standing


def _note(manifest: Manifest, won: bool) -> str:
    shown = {
        name: value for name, value in manifest.metrics.items() if value is not None and name.endswith("success_micro")
    }
    numbers = "".join(f", {name.removesuffix('_micro')} {value:.1%}" for name, value in shown.items())
    return f"{manifest.iteration}: committed{'' if won else ' by another run, adopted'}{numbers}"
