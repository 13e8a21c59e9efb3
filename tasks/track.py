"""What follows a commit: metrics to trackers and to Prefect's artifacts, and old optimizer states away.

All of it can be done again: what the trackers show can be rebuilt from the store.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from functools import partial

from prefect import task

from infra import store as campaign_store
from infra.manifest import Manifest
from infra.store import CampaignStore, read_config
from opid_core.errors import InfrastructureError
from opid_core.evaluation import panel_name
from tasks import trackers
from tasks.commit import manifest_path
from tasks.iteration import TASK, CampaignRun, campaign_run
from tasks.markdown import as_code, markdown_table
from tasks.progress import announce, artifact_key, logged
from tasks.trackers.commits import committed, without_secrets

SHOWN = {
    "rollout/success_micro": "rollouts won",
    "routes/step": "critical share (steps with a step skill)",
    "signal/step/order": "order by step skills (0.5: none)",
    "signal/step/above_placebo": "order by step skills above their placebo",
    "signal/episode/order": "order by episode skills (0.5: none)",
    "signal/episode/above_placebo": "order by episode skills above their placebo",
    "advantage_share/skill": "skills' share of the advantage",
    "skills/coverage": "trajectories with an episode skill",
    "skills/failed": "trajectories whose analysis failed",
    "update/kl_k3": "KL from the sampling to the trained policy (k3, nats)",
    "seconds/iteration_s": "seconds",
}
_LEVELS = "▁▂▃▄▅▆▇█"
_MOST_SHOWN = 60
"""Of a curve: values at equal distances."""


@task(task_run_name="track-{iteration}", **TASK)
def track(campaign: str, iteration: int) -> None:
    """Write the metrics of a commit (nothing for the start).

    Raises InfrastructureError that names the trackers that failed, Prefect's server among them.
    """
    with logged("track", iteration):
        run = campaign_run(campaign)
        if iteration:
            track_metrics(run, run.chain[: iteration + 1])


@task(task_run_name="prune_states-{iteration}", **TASK)
def prune_states(campaign: str, iteration: int) -> None:
    """Delete the optimizer states that `storage.optimizer_states` no longer asks for."""
    with logged("prune_states", iteration):
        run = campaign_run(campaign)
        if (kept := run.config.storage.optimizer_states) is not None:
            campaign_store.prune_states(run.store, run.chain, kept, done=run.pruned)
            run.pruned = max(run.pruned, len(run.chain) - kept)


def track_metrics(run: CampaignRun, chain: Sequence[Manifest]) -> None:
    """The newest commit of `chain` to Prefect, and all that they lack to the trackers of the config; the fault of one
    keeps nothing from the others. Called in a Prefect run.

    Raises InfrastructureError that names the trackers that failed, Prefect's server among them.
    """
    import httpx
    from prefect.artifacts import create_markdown_artifact
    from prefect.exceptions import PrefectException

    store, manifest = run.store, chain[-1]
    tell = partial(announce, manifest.iteration, "track", "fault")
    commits, faults = committed(run.config, store, chain, run.table, tell), []
    try:
        create_markdown_artifact(
            markdown=markdown(store, chain, commits[-1].metrics),
            key=artifact_key("audit", store.campaign),
            description=f"{store.campaign}, iteration {manifest.iteration}",
        )
    except (httpx.HTTPError, PrefectException) as error:
        faults.append(f"Prefect: {type(error).__name__}: {without_secrets(str(error))}")
    try:
        trackers.write(commits)
    except InfrastructureError as error:
        faults.append(str(error))
    if faults:
        raise InfrastructureError("; ".join(faults))


def markdown(store: CampaignStore, chain: Sequence[Manifest], metrics: Mapping[str, float]) -> str:
    """What the artifact of the newest commit of `chain` says; `metrics` are all of its own."""
    manifest, panel = chain[-1], panel_name(read_config(store))
    evaluated = {
        name: f"{name.split('/')[1]}, {panel} won"
        for name in sorted(metrics)
        if name.startswith("evaluation/") and name.endswith("/success_micro")
    }
    rows = [[title, f"{metrics[name]:.4g}"] for name, title in (SHOWN | evaluated).items() if name in metrics]
    held = sum(len(gate.held) for gate in manifest.gates.values())
    broken = sum(len(gate.broken) for gate in manifest.gates.values())
    command = ["opid", "audit", f"{store.campaign}@{manifest.iteration}", "--root", store.root]
    if store.endpoint_url is not None:
        command += ["--endpoint-url", store.endpoint_url]
    return "\n".join(
        [
            f"# {store.campaign}, iteration {manifest.iteration}",
            "",
            *[f"**Degraded:** {as_code(reason)}\n" for reason in manifest.degraded],
            *markdown_table(
                ["of the iteration", "value"], [*rows, ["expectations held", f"{held} of {held + broken}"]]
            ),
            "",
            *_curves(chain, {"rollout/success_micro": SHOWN["rollout/success_micro"]} | evaluated),
            f"Its manifest is `{manifest_path(store, manifest)}`. Its audit page is written by",
            "",
            "```",
            shlex.join(command),
            "```",
            "",
        ]
    )


def _curves(chain: Sequence[Manifest], titles: Mapping[str, str]) -> list[str]:
    """Of each share among the metrics `titles` its course over the campaign, as text: of Prefect's two interfaces one
    shows no image that an artifact holds."""
    rows = []
    for name, title in titles.items():
        values = [value for one in chain if (value := one.metrics.get(name)) is not None]
        if len(values) > 1:
            shown = values[:: -math.ceil(len(values) / _MOST_SHOWN)][::-1]  # with the newest
            curve = "".join(_LEVELS[min(int(value * len(_LEVELS)), len(_LEVELS) - 1)] for value in shown)
            rows.append([title, f"{values[0]:.1%}", curve, f"{values[-1]:.1%}"])
    return [*markdown_table(["over the iterations", "first", "0% to 100%", "newest"], rows), ""] if rows else []
