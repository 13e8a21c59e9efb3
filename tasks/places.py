"""Where the processes of a campaign run: on this machine's GPUs or its CPU, or on the nodes of a cluster."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from infra import hosting
from infra.groups import Folder, Group
from infra.hosting import HostedGroup
from infra.manifest import FolderRecord
from infra.store import CampaignStore, folder_path
from opid_core.config import CampaignConfig
from opid_core.errors import ConfigError
from tasks import policies

ENGINE = "opid_core.rollout.engines.vllm:VllmEngine"
PLAYER = "tasks.players:Player"
LEARNER = "tasks.storing_learner:StoringLearner"


class Places(Protocol):
    """Makes the groups of a campaign, and gives them the folders of its store."""

    def folder(self, store: CampaignStore, folder: FolderRecord) -> Folder:
        """A stored folder, in the form in which the groups made here read it."""
        ...

    def whole_policy(self, store: CampaignStore, policy: FolderRecord) -> AbstractContextManager[Folder]:
        """All weights of a stored policy, in that form, as long as the block runs."""
        ...

    def engine(self, replica: int, name: str, policy_dir: Folder, *, trained: bool) -> Group:
        """A `VllmEngine`, or a `Player` with one, that is replica number `replica`, from 0."""
        ...

    def learner(self, policy_dir: Folder, config: Any, **named: Any) -> Group:
        """A `StoringLearner` on the config's ranks; its arguments but for `threads` and `seed`."""
        ...

    def first_done(self, groups: Sequence[Any]) -> Group:
        """Wait until one of `groups`, each of which has begun something, can finish it or is lost: the first."""
        ...

    def close(self) -> None:
        """Give back what is reserved. All groups are ended."""
        ...


def places_of(config: CampaignConfig) -> Places:
    """Those that `cluster.address` chooses. Nothing is reserved before the first group is made."""
    if config.cluster.address is None:
        return LocalPlaces(config)
    from tasks.cluster import ClusterPlaces

    return ClusterPlaces(config)


class LocalPlaces:
    """Processes of this machine."""

    def __init__(self, config: CampaignConfig) -> None:
        self._config = config

    def folder(self, store: CampaignStore, folder: FolderRecord) -> Path:
        """See `Places.folder`."""
        return folder_path(store, folder)

    def whole_policy(self, store: CampaignStore, policy: FolderRecord) -> AbstractContextManager[Path]:
        """See `Places.whole_policy`."""
        return policies.whole_policy(store, policy)

    def engine(self, replica: int, name: str, policy_dir: Folder, *, trained: bool) -> Group:
        """See `Places.engine`: the process sees its own GPUs alone. Raises ConfigError for more GPUs than there are."""
        gpus = gpus_of_replicas(self._config)[replica]
        env = {"CUDA_VISIBLE_DEVICES": ",".join(gpus)} if gpus else {}
        options = engine_options(self._config, trained)
        env["OMP_NUM_THREADS"] = str(options["threads"])
        return HostedGroup(name, *engine_factory(self._config, policy_dir), env=env, **options)

    def learner(self, policy_dir: Folder, config: Any, **named: Any) -> Group:
        """See `Places.learner`."""
        options = {"threads": self._config.threads, "seed": self._config.seed, **named}
        ranks, env = self._config.learner.ranks, {"OMP_NUM_THREADS": str(threads_of_rank(self._config))}
        return HostedGroup("learner", LEARNER, policy_dir, config, ranks=ranks, env=env, **options)

    def first_done(self, groups: Sequence[Any]) -> Group:
        """See `Places.first_done`."""
        return hosting.first_done(groups)

    def close(self) -> None:
        """Nothing is reserved."""


def engine_factory(config: CampaignConfig, policy_dir: Folder) -> tuple[str, Folder, Any]:
    """What makes a replica: the factory and its first arguments."""
    if config.rollout.loop == "replicas":
        return PLAYER, policy_dir, config
    return ENGINE, policy_dir, config.engine


def engine_options(config: CampaignConfig, trained: bool) -> dict[str, Any]:
    """Arguments of a `VllmEngine` beside its policy and `config.engine`, by name."""
    return {
        "max_model_len": config.rollout.max_prompt_tokens + config.rollout.max_response_tokens,
        "threads": threads_of_replica(config),
        "seed": config.seed,
        "trained": trained,
    }


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, by the names that CUDA_VISIBLE_DEVICES has for them."""
    import torch

    count = torch.cuda.device_count()
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return (given.split(",") if given else [str(number) for number in range(count)])[:count]


def gpus_of_replicas(config: CampaignConfig) -> list[list[str]]:
    """The GPUs of each replica: `engine.tensor_parallel` neighbours, from the first on; none where there is no GPU.

    Raises ConfigError where the replicas, or the learner's ranks, need more GPUs than are visible, and for tensor
    parallelism or `engine.share_gpus` without any: the processes of a CPU share one memory, so dividing the weights
    gains nothing there, and vLLM has no sleep mode for it.
    """
    gpus, engine = visible_gpus(), config.engine
    each = engine.tensor_parallel
    if not gpus and engine.share_gpus:
        raise ConfigError("engine.share_gpus: this machine shows no GPU; set it to false")
    if not gpus and each > 1:
        raise ConfigError(f"engine.tensor_parallel {each}: this machine shows no GPU; set it to 1")
    if not gpus:
        return [[] for _ in range(engine.replicas)]
    for what, needed in (
        (f"engine.replicas {engine.replicas} x engine.tensor_parallel {each}", engine.replicas * each),
        (f"learner.ranks {config.learner.ranks}", config.learner.ranks),
    ):
        if needed > len(gpus):
            raise ConfigError(f"{what}: {needed} GPUs are needed, this machine shows {len(gpus)} ({', '.join(gpus)})")
    return [gpus[first : first + each] for first in range(0, engine.replicas * each, each)]


def threads_of_replica(config: CampaignConfig) -> int:
    """CPU threads of each replica."""
    return max(1, config.threads // config.engine.replicas)


def threads_of_rank(config: CampaignConfig) -> int:
    """CPU threads of each of the learner's ranks."""
    return max(1, config.threads // config.learner.ranks)
