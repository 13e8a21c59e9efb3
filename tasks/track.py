"""What follows a commit: metrics to trackers and to Prefect's artifacts, and old optimizer states away.

All of it can be done again: what the trackers show can be rebuilt from the store.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping

from prefect import task

from infra import store as campaign_store
from infra.local_objects import faults
from infra.manifest import Manifest
from infra.store import CampaignStore, local_folder, read_config, read_table
from opid_core.config import CampaignConfig
from opid_core.errors import ConfigError, InfrastructureError
from opid_core.evaluation import panel_name
from tasks.commit import manifest_path
from tasks.iteration import TASK, campaign_run, logged
from tasks.progress import artifact_key

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


@task(task_run_name="track-{iteration}", **TASK)
def track(campaign: str, iteration: int) -> None:
    """Write the metrics of a commit (nothing for the start).

    Raises InfrastructureError where W&B or the local disk fails.
    """
    with logged("track", iteration):
        run = campaign_run(campaign)
        if iteration:
            track_metrics(run.config, run.store, run.chain[iteration])


@task(task_run_name="prune_states-{iteration}", **TASK)
def prune_states(campaign: str, iteration: int) -> None:
    """Delete the optimizer states that `storage.optimizer_states` no longer asks for."""
    with logged("prune_states", iteration):
        run = campaign_run(campaign)
        if (kept := run.config.storage.optimizer_states) is not None:
            campaign_store.prune_states(run.store, run.chain, kept)


def track_metrics(config: CampaignConfig, store: CampaignStore, manifest: Manifest) -> None:
    """The metrics of a commit to Prefect, TensorBoard and W&B. Called in a Prefect run.

    Raises InfrastructureError where W&B or the local disk fails.
    """
    from prefect.artifacts import create_markdown_artifact

    rows = read_table(store, manifest.tables["metrics"]).to_pylist()
    metrics = {row["name"]: row["value"] for row in rows if row["value"] is not None and math.isfinite(row["value"])}
    create_markdown_artifact(
        markdown=markdown(store, manifest, metrics),
        key=artifact_key("audit", store.campaign),
        description=f"{store.campaign}, iteration {manifest.iteration}",
    )
    if config.tracking.tensorboard:
        from torch.utils.tensorboard import SummaryWriter

        folder = local_folder(store, "tensorboard")
        with faults(folder, "written"), SummaryWriter(str(folder), purge_step=manifest.iteration) as writer:
            for name, value in metrics.items():
                writer.add_scalar(name, value, manifest.iteration)
    if config.tracking.wandb_project is not None:
        _to_wandb(config, metrics, manifest.iteration)


def markdown(store: CampaignStore, manifest: Manifest, metrics: Mapping[str, float]) -> str:
    """What the artifact of a commit says."""
    panel = panel_name(read_config(store))
    evaluated = {
        name: f"{name.split('/')[1]}, {panel} won"
        for name in sorted(metrics)
        if name.startswith("evaluation/") and name.endswith("/success_micro")
    }
    rows = [f"| {title} | {metrics[name]:.4g} |" for name, title in (SHOWN | evaluated).items() if name in metrics]
    expectations = [result for gate in manifest.gates.values() for result in gate.expectations]
    held = sum(result.passed for result in expectations)
    command = ["opid", "audit", f"{store.campaign}@{manifest.iteration}", "--root", store.root]
    if store.endpoint_url is not None:
        command += ["--endpoint-url", store.endpoint_url]
    return "\n".join(
        [
            f"# {store.campaign}, iteration {manifest.iteration}",
            "",
            *[f"**Degraded:** `{reason.replace('`', '')}`\n" for reason in manifest.degraded],
            "| | |",
            "|---|---|",
            *rows,
            f"| expectations held | {held} of {len(expectations)} |",
            "",
            f"Its manifest is `{manifest_path(store, manifest)}`. Its audit page is written by",
            "",
            "```",
            shlex.join(command),
            "```",
            "",
        ]
    )


def _to_wandb(config: CampaignConfig, metrics: Mapping[str, float], iteration: int) -> None:
    wandb = require_wandb()
    try:
        run = wandb.init(
            project=config.tracking.wandb_project,
            id=config.campaign,
            name=config.campaign,
            resume="allow",
            config=config.model_dump(mode="json"),
        )
        run.log(metrics, step=iteration)
        run.finish()
    except wandb.Error as error:
        raise InfrastructureError(f"Weights & Biases: {type(error).__name__}: {error}") from error


def require_wandb():
    """The wandb module. Raises ConfigError that says what to install."""
    try:
        import wandb  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ConfigError(
            "tracking.wandb_project is set but wandb is not installed: pip install 'opid[wandb]'"
        ) from None
    return wandb
