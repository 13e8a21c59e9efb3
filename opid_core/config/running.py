"""Sections of the config about where and how a campaign runs."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from opid_core.sections import Section
from opid_core.wording import SERVER_ADDRESS

LONGEST_S = 10_000_000.0
"""Of what is waited for (116 days): timers of the operating system and dates of Prefect do not reach much further."""
LONGEST_DELAY_S = 600.0
"""Before a further try of a stage: what was doubled so often would not come within anybody's patience."""


class StorageConfig(Section):
    """How the store is reached. Credentials are never written here: they come from the standard AWS chain."""

    endpoint_url: str | None = Field(default=None, pattern=SERVER_ADDRESS)
    """Address of an S3-compatible server for a root of `s3://`; null: AWS, or what the AWS settings say."""
    optimizer_states: int | None = Field(default=None, ge=1)
    """Of how many of the newest policies the optimizer state is kept; older ones are deleted, their weights stay. Null:
    of all, so that `opid reproduce` can run any iteration again."""
    background: bool = True
    """Whether the next iteration's rollout is played while a policy's optimizer state is uploaded. The temporary folder
    holds the state until then."""


class ClusterConfig(Section):
    """Machines beyond this one: engines and the learner's ranks run on the nodes of a Ray cluster (extra `ray`)."""

    address: str | None = Field(default=None, pattern=r"^(auto|[A-Za-z0-9][A-Za-z0-9._-]*:[0-9]{1,5})$")
    """`HOST:PORT` of the cluster's head, or `auto` for the cluster that this machine is a node of; null: processes of
    this machine."""
    start_timeout_s: float = Field(default=600.0, gt=0, le=LONGEST_S)
    """Longest wait for room on the cluster, and for a process to start there."""


class RecoveryConfig(Section):
    """What is tried again after a fault outside the program, how often, and what counts as one."""

    stage_timeout_s: float = Field(default=7200.0, gt=0, le=LONGEST_S)
    """A stage that takes longer is ended, its engine and learner are killed, and it is tried again."""
    stage_retries: int = Field(default=5, ge=0, le=50)  # Prefect refuses more delays
    """Further tries of a stage after an infrastructure fault (storage, engine, learner, time-out, out of memory)."""
    retry_delay_s: float = Field(default=2.0, ge=0, le=LONGEST_DELAY_S)
    """Wait before the first further try of a stage; doubled each time up to 600 s, with up to half of it added at
    random."""
    iteration_attempts: int = Field(default=3, ge=1)
    """An iteration that still fails is tried whole so many times before the campaign stops."""
    lease_ttl_s: float = Field(default=30.0, ge=1, le=LONGEST_S)
    """A driver that has not renewed its lease for so long is taken for dead, and another may take over."""


class TrackingConfig(Section):
    """Where metrics go beside the store."""

    tensorboard: bool = True
    """Write TensorBoard event files under `<root>/<campaign>/tensorboard`."""
    wandb_project: str | None = None
    """Weights & Biases project (needs the extra `wandb`)."""
    mlflow_experiment: str | None = Field(default=None, min_length=1)
    """MLflow experiment (needs the extra `mlflow`); the server is that of MLFLOW_TRACKING_URI."""


class NotifyConfig(Section):
    """Messages about a campaign, through Apprise: Slack, mail, webhooks and a hundred more (docs/tracking.md)."""

    url_env: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """Environment variable that holds the Apprise address, such as `slack://...` or `jsons://HOST/PATH`: it is a
    secret, so it is never written here. Null: no messages."""
    on: tuple[Literal["failed", "degraded", "finished"], ...] = ("failed", "degraded", "finished")
    """What is told: `failed`: the campaign stopped with an error; `degraded`: an iteration was committed although its
    failure budget was exceeded; `finished`: its last iteration is committed."""
