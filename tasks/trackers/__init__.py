"""Where the numbers of a commit go beside the store. A tracker is a module with two functions: `check()`, before any
work, and `write(commits)`, which gets all commits of a campaign, beginning with iteration 1, and writes those that it
does not have: what was left undone is made up for, and what is written again changes nothing that is shown."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

from opid_core.config import CampaignConfig
from opid_core.errors import InfrastructureError, OpidError
from tasks.trackers import to_mlflow, to_tensorboard, to_wandb
from tasks.trackers.commits import Committed, without_secrets


def wanted(config: CampaignConfig) -> dict[str, ModuleType]:
    """The trackers that `tracking` asks for, by their names."""
    tracking = config.tracking
    asked = {
        "TensorBoard": (tracking.tensorboard, to_tensorboard),
        "Weights & Biases": (tracking.wandb_project is not None, to_wandb),
        "MLflow": (tracking.mlflow_experiment is not None, to_mlflow),
    }
    return {name: module for name, (is_wanted, module) in asked.items() if is_wanted}


def check(config: CampaignConfig) -> None:
    """Raise ConfigError where a tracker that is asked for is not installed, or has an address that is none."""
    for tracker in wanted(config).values():
        tracker.check()


def write(commits: Sequence[Committed]) -> None:
    """Bring every tracker up to the newest commit; the fault of one keeps nothing from the others.

    Raises InfrastructureError that names each tracker that failed.
    """
    faults = []
    for name, tracker in wanted(commits[-1].config).items():
        try:
            tracker.write(commits)
        except Exception as error:  # of a library of others: whatever it is, the commit stands
            kind = "" if isinstance(error, OpidError) else f"{type(error).__name__}: "
            faults.append(f"{name}: {kind}{without_secrets(str(error))}")
    if faults:
        raise InfrastructureError("; ".join(faults))
