"""Metrics of committed iterations to TensorBoard, Weights & Biases and Prefect's artifacts. What they show can be
rebuilt from the store."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from infra.local_objects import faults
from infra.manifest import START, Manifest
from infra.store import CampaignStore, local_folder, read_table
from opid_core.config import CampaignConfig
from opid_core.errors import ConfigError, InfrastructureError
from tasks.artifact import publish


def track(config: CampaignConfig, store: CampaignStore, chain: Sequence[Manifest]) -> None:
    """Write the metrics of the newest iteration of `chain` (nothing for the start).

    Raises InfrastructureError where W&B or the local disk fails.
    """
    manifest = chain[-1]
    if manifest.iteration == START:
        return
    rows = read_table(store, manifest.tables["metrics"]).to_pylist()
    metrics = {row["name"]: row["value"] for row in rows if row["value"] is not None and math.isfinite(row["value"])}
    publish(store, manifest, metrics)
    if config.tracking.tensorboard:
        from torch.utils.tensorboard import SummaryWriter

        folder = local_folder(store) / "tensorboard"
        with faults(folder, "written"), SummaryWriter(str(folder), purge_step=manifest.iteration) as writer:
            for name, value in metrics.items():
                writer.add_scalar(name, value, manifest.iteration)
    if config.tracking.wandb_project is not None:
        _to_wandb(config, metrics, manifest.iteration)


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
