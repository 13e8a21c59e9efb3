"""What of the config must fit this machine's GPUs, or its CPU, and the shape of the model."""

from __future__ import annotations

import os

from flows.memory import policy_shape
from opid_core.config import CampaignConfig
from opid_core.errors import ConfigError
from opid_core.policy_shape import PolicyShape
from tasks.cluster import check_cluster
from tasks.places import gpus_of_replicas, threads_of_replica, visible_gpus

# With 128 episodes on 8 replicas the driver costs 9% of their time, with 1,024 on 32 half of it (docs/scale.md).
_MANY_REPLICAS, _MANY_EPISODES = 16, 512


def check_devices(config: CampaignConfig, shape: PolicyShape | None = None) -> None:
    """Raise ConfigError where there are too few GPUs for the replicas or the ranks, on this machine or its cluster, the
    cluster cannot be used, or the model cannot be divided; its `shape` is read where it is needed and not given."""
    if config.cluster.address is None:
        gpus_of_replicas(config)
    else:
        check_cluster(config)
    parts = config.engine.tensor_parallel
    if parts == 1:
        return
    shape = shape or policy_shape(config)
    if shape.heads % parts or (shape.key_value_heads % parts and parts % shape.key_value_heads):
        raise ConfigError(
            f"engine.tensor_parallel {parts} does not divide the model's {shape.heads} attention heads, with "
            f"{shape.key_value_heads} of keys and values"
        )
    if shape.intermediate_size % parts:
        raise ConfigError(
            f"engine.tensor_parallel {parts} does not divide the model's intermediate_size, {shape.intermediate_size}"
        )


def describe_engine(config: CampaignConfig) -> str:
    """Where the replicas run."""
    replicas = config.engine.replicas
    many = f"{replicas} replicas" if replicas > 1 else "1 replica"
    if config.cluster.address is not None:
        return f"{many} on the cluster at {config.cluster.address}"
    gpus = gpus_of_replicas(config)
    if gpus[0]:
        return f"{many}: GPU {'; '.join(', '.join(replica_gpus) for replica_gpus in gpus)}"
    return f"{many} on the CPU, threads: {threads_of_replica(config)} each"


def device_warnings(config: CampaignConfig) -> list[str]:
    """What runs, and wastes the machine."""
    replicas, parts = config.engine.replicas, config.engine.tensor_parallel
    episodes = config.rollout.tasks_per_iteration * config.rollout.group_size
    if config.rollout.loop == "driver" and replicas >= _MANY_REPLICAS and episodes >= _MANY_EPISODES:
        return [
            f"rollout.loop: the driver alone prepares the turns of {episodes:,} episodes for {replicas} replicas, and "
            "they will wait for it (docs/scale.md); set it to replicas."
        ]
    if config.cluster.address is not None:
        return []
    gpus = len(visible_gpus())
    cores = len(os.sched_getaffinity(0))
    if not gpus:
        return [
            f"{key} {processes} on {cores} CPU cores: more than one a core only costs memory."
            for key, processes in (("engine.replicas", replicas), ("learner.ranks", config.learner.ranks))
            if processes > cores
        ]
    if max(replicas * parts, config.learner.ranks) < gpus:
        return [
            f"engine.replicas {replicas} x engine.tensor_parallel {parts} and learner.ranks {config.learner.ranks} "
            f"leave GPUs idle: this machine shows {gpus}."
        ]
    return []
