"""Stage 7: the commit, which makes an iteration exist."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime

from prefect.assets import materialize
from prefect.runtime import flow_run

from infra import store as campaign_store
from infra.manifest import Manifest, new_manifest
from infra.store import CampaignStore, key_of, location, stored_config_hash
from opid_core.hashing import config_hash, execution
from opid_core.schema import TABLES, from_rows
from tasks.gates.results import DRIFT_FLOORS, is_watched
from tasks.iteration import TASK, Iteration, asset, campaign_run, stage
from tasks.progress import announce
from tasks.version import code_version

HEADLINES = (
    *("rollout/success_", "rollout/episodes", "rollout/score", "rollout/return", "evaluation/"),
    *("skills/coverage", "skills/new_texts", "analyses/", "seconds/analyses_s"),
    *("update/kl", "signal/", "advantage_share/skill", *DRIFT_FLOORS),
)
"""Metrics whose names begin so are in the manifest too; the table `metrics` holds all."""
TIMES = ("seconds/iteration_s", "seconds/overhead_s")
"""In the manifest too."""

WORK = ("push", "rollout", "rescore", "update", "evaluate")
"""Metrics `seconds/<name>_s` of what engine, environments and learner do; the rest of an iteration is overhead."""


def build_manifest(it: Iteration, *, created_at: datetime, prefect_run_id: str | None) -> Manifest:
    """The manifest of the iteration from all that its stages made.

    Raises DataError when the chain does not end with the manifest of the iteration before.
    """
    everything = it.everything()
    return new_manifest(
        iteration=it.number,
        tables=everything.tables,
        policy=it.next_policy,
        gates=everything.gates,
        config_hash=config_hash(it.config) if it.number else stored_config_hash(it.store),
        preset=it.config.preset,
        execution=execution(it.config),
        code_version=code_version(),
        seeds={"campaign": it.config.seed, "iteration": it.seed},
        prefect_run_id=prefect_run_id,
        metrics={n: value for n, value in everything.metrics.items() if n.startswith(HEADLINES) or n in TIMES},
        created_at=created_at.isoformat(timespec="milliseconds"),
        previous=it.parent,
        degraded=[f"{gate.table}: {reason}" for gate in everything.gates for reason in gate.degraded],
    )


def metric_rows(iteration: int, metrics: Mapping[str, float | None]) -> list[dict]:
    """Rows of the table `metrics`, sorted by name."""
    return [{"iteration": iteration, "name": name, "value": metrics[name]} for name in sorted(metrics)]


def times(it: Iteration, iteration_s: float, ahead: Iteration | None = None) -> dict[str, float]:
    """Seconds from one commit to the next, and of it what is neither engine, environments nor learner. Stages that were
    reused from an interrupted run took none; one of the next iteration that was played `ahead` counts here."""
    played = [one for one in (it, ahead) if one is not None]
    done_here = [result for one in played for name, result in one.results.items() if name not in one.reused_stages]
    work_s = sum(result.metrics.get(f"seconds/{name}_s") or 0.0 for result in done_here for name in WORK)
    return dict(zip(TIMES, (iteration_s, iteration_s - work_s), strict=True))


@materialize(
    asset("manifest"),
    asset("metrics"),
    asset_deps=[asset(name) for name in ("policy", *TABLES) if name != "metrics"],
    task_run_name="commit-{iteration}",
    **TASK,
)
def commit(campaign: str, iteration: int, attempt: int) -> Manifest:
    """Write the table `metrics` and commit. Returns the manifest that stands: ours, or that of a run which was faster.

    Raises LeaseLost where another driver has taken the campaign over.
    """
    with stage("commit", campaign, iteration, attempt, recorded=False) as it:
        it.metrics |= times(it, time.monotonic() - it.since_s, campaign_run(campaign).ahead)
        metrics = from_rows("metrics", metric_rows(it.number, it.everything().metrics))
        it.write("metrics", metrics, iteration=it.number, history=history(it))
        manifest = build_manifest(it, created_at=datetime.now(UTC), prefect_run_id=flow_run.id)
        if (lease := campaign_run(campaign).lease) is not None:
            lease.check()
        standing, won = campaign_store.commit(it.store, manifest)
        it.show_asset("manifest", {"path": manifest_path(it.store, standing), "content": standing.content})
    announce(iteration, "commit", "committed", what_changed(it.config.iterations, standing, it.parent, won))
    return standing


def manifest_path(store: CampaignStore, manifest: Manifest) -> str:
    """Where the store holds it."""
    return location(store, f"_commits/{key_of(manifest.iteration)}.json")


def history(it: Iteration) -> list[dict[str, float | None]]:
    """Metrics of the iterations before, oldest first, as far as the gate watches them."""
    before, gates = it.chain[1:], it.config.gates
    recent = before[max(0, len(before) - max(gates.drift_iterations, gates.placebo_iterations - 1)) :]
    return [{name: value for name, value in m.metrics.items() if is_watched(name)} for m in recent]


def what_changed(iterations: int, manifest: Manifest, before: Manifest | None, won: bool) -> str:
    """One line about a commit: how many episodes were won, how many more than in the iteration before, and the KL of
    the policy that sampled to the one that was trained."""
    metrics, iteration = manifest.metrics, manifest.iteration
    parts = []
    if (share := metrics.get("rollout/success_micro")) is not None:
        last = before.metrics.get("rollout/success_micro") if before else None
        more = "" if last is None else f" ({100 * (share - last):+.1f} points)"
        parts.append(f"{share:.1%} of rollouts won{more}")
    for name, share in sorted(metrics.items()):
        if name.startswith("evaluation/") and name.endswith("/success_micro") and share is not None:
            parts.append(f"evaluation {name.split('/')[1]} {share:.1%}")
    if (kl := metrics.get("update/kl_k3")) is not None:
        parts.append(f"KL {kl:.2g}")
    if (seconds := metrics.get("seconds/iteration_s")) is not None:
        parts.append(f"{seconds:.0f} s")
    what = f"iteration {iteration} of {iterations}" if iteration else "start"
    return f"{what} committed{'' if won else ' by another run, adopted'}: {', '.join(parts)}"
