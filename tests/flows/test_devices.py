"""Replicas, ranks and tensor parallelism against the GPUs of a machine and the shape of a model."""

from __future__ import annotations

import os
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from flows.devices import check_devices, describe_engine, device_warnings
from opid_core.config import CampaignConfig, build_config
from opid_core.errors import ConfigError
from tasks.places import gpus_of_replicas, threads_of_replica
from tests.flows.test_memory import SHAPE


def config_of(replicas: int = 1, tensor_parallel: int = 1, ranks: int = 1, threads: int = 2) -> CampaignConfig:
    engine = {"replicas": replicas, "tensor_parallel": tensor_parallel}
    return build_config({"campaign": "c", "threads": threads, "engine": engine, "learner": {"ranks": ranks}})


@pytest.fixture
def machine(monkeypatch):
    """Makes this a machine of so many GPUs, of which CUDA_VISIBLE_DEVICES may name some, and so many cores."""

    def make(gpus: int, named: str | None = None, cores: int = 8) -> None:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus if named is None else len(named.split(",")))
        monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)))
        if named is None:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        else:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)

    return make


def test_each_replica_has_gpus_of_its_own(machine):
    machine(8)
    assert gpus_of_replicas(config_of()) == [["0"]]
    assert gpus_of_replicas(config_of(3)) == [["0"], ["1"], ["2"]]
    assert gpus_of_replicas(config_of(2, 4)) == [["0", "1", "2", "3"], ["4", "5", "6", "7"]]
    machine(8, "5,GPU-1f,2")
    assert gpus_of_replicas(config_of(2)) == [["5"], ["GPU-1f"]]
    machine(0)
    assert gpus_of_replicas(config_of(2)) == [[], []]
    with pytest.raises(ConfigError, match=r"engine.tensor_parallel 2: this machine shows no GPU"):
        gpus_of_replicas(config_of(1, 2))


def test_gpus_are_shared_where_there_are_some(machine):
    shared = build_config({"campaign": "c", "engine": {"share_gpus": True}})
    machine(1)
    check_devices(shared, SHAPE)
    machine(0)
    with pytest.raises(ConfigError, match=r"engine.share_gpus: this machine shows no GPU; set it to false"):
        check_devices(shared, SHAPE)


@pytest.mark.parametrize(
    ("replicas", "tensor_parallel", "ranks", "message"),
    [
        (4, 1, 4, None),
        (2, 2, 1, None),
        (5, 1, 1, r"engine.replicas 5 x engine.tensor_parallel 1: 5 GPUs are needed, .* shows 4 \(0, 1, 2, 3\)"),
        (2, 4, 1, r"engine.replicas 2 x engine.tensor_parallel 4: 8 GPUs are needed, .* shows 4"),
        (1, 1, 8, r"learner.ranks 8: 8 GPUs are needed, .* shows 4"),
    ],
)
def test_more_gpus_than_there_are_is_refused(machine, replicas, tensor_parallel, ranks, message):
    machine(4)
    with pytest.raises(ConfigError, match=message) if message else nullcontext():
        check_devices(config_of(replicas, tensor_parallel, ranks), SHAPE)


@pytest.mark.parametrize(
    ("parts", "changes", "message"),
    [
        (2, {}, None),
        (4, {}, None),  # 2 heads of keys, each on two GPUs
        (3, {}, r"engine.tensor_parallel 3 does not divide the model's 4 attention heads, with 2"),
        (4, {"heads": 12, "key_value_heads": 6}, r"tensor_parallel 4 .* 12 attention heads, with 6 of keys"),
        (4, {"intermediate_size": 250}, r"engine.tensor_parallel 4 does not divide .* intermediate_size, 250"),
    ],
)
def test_a_model_that_cannot_be_divided_is_refused(machine, parts, changes, message):
    machine(8)
    with pytest.raises(ConfigError, match=message) if message else nullcontext():
        check_devices(config_of(1, parts), replace(SHAPE, **changes))


def test_on_a_cpu_threads_are_divided_and_more_processes_than_cores_are_pointed_out(machine):
    machine(0, cores=4)
    assert [threads_of_replica(config_of(replicas, threads=4)) for replicas in (1, 2, 3, 8)] == [4, 2, 1, 1]
    assert describe_engine(config_of(2, threads=4)) == "2 replicas on the CPU, threads: 2 each"
    assert device_warnings(config_of(4)) == []
    (warning,) = device_warnings(config_of(5))
    assert warning.startswith("engine.replicas 5 on 4 CPU cores")
    assert device_warnings(config_of(ranks=4)) == []
    assert [text.split(":")[0] for text in device_warnings(config_of(5, ranks=6))] == [
        "engine.replicas 5 on 4 CPU cores",
        "learner.ranks 6 on 4 CPU cores",
    ]


def test_gpus_that_idle_are_pointed_out(machine):
    machine(8)
    assert describe_engine(config_of(2, 2)) == "2 replicas: GPU 0, 1; 2, 3"
    assert device_warnings(config_of(8)) == device_warnings(config_of(ranks=8)) == []
    (warning,) = device_warnings(config_of(2, 2, ranks=4))
    assert "engine.replicas 2 x engine.tensor_parallel 2 and learner.ranks 4 leave GPUs idle" in warning


@pytest.mark.parametrize(
    ("replicas", "tasks", "loop", "is_pointed_out"),
    [(16, 64, "driver", True), (16, 64, "replicas", False), (15, 64, "driver", False), (16, 63, "driver", False)],
)
def test_a_driver_that_plays_a_large_fleet_is_pointed_out(machine, replicas, tasks, loop, is_pointed_out):
    """64 groups of 8: 512 episodes."""
    machine(16)
    fleet = config_of(replicas, ranks=16)
    rollout = fleet.rollout.model_copy(update={"tasks_per_iteration": tasks, "group_size": 8, "loop": loop})
    warnings = device_warnings(fleet.model_copy(update={"rollout": rollout}))
    assert [warning.startswith("rollout.loop") for warning in warnings] == [True] * is_pointed_out
