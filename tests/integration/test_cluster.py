"""Campaigns on two local raylets: the same as without, and faults that are named."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress

import numpy as np
import psutil
import pytest
from safetensors.numpy import load_file

from benchmarks.cluster_faults import DRIVER, told_by
from infra import ray_nodes
from infra.ray_hosting import RayPlaces
from infra.store import STATE_FOLDER, folder_path, open_campaign, put_folder
from opid_core.config import build_config
from opid_core.errors import ConfigError, InfrastructureError
from tasks import cluster
from tasks.cluster import ClusterPlaces, check_cluster, check_store
from tasks.places import LocalPlaces
from tests.factories import make_tiny_policy_folder
from tests.integration.campaigns import (
    REPOSITORY,
    before_the_second_iteration,
    finish,
    opened,
    same_content,
    start,
    wait_for,
)
from tests.integration.learner_cases import CONFIG, make_samples

pytestmark = [pytest.mark.integration, pytest.mark.cluster]


def config_of(ray_cluster, root, **learner):
    return build_config(
        {
            "campaign": "c",
            "root": str(root),
            "threads": 2,
            "cluster": {"address": ray_cluster.address, "start_timeout_s": 60},
            "learner": {**CONFIG.model_dump(), **learner},
        }
    )


@pytest.mark.slow
def test_an_iteration_on_the_cluster_whose_engine_is_killed_is_the_one_without(
    campaign, ray_cluster, prefect_server, tmp_path
):
    root = tmp_path / "runs"
    before_the_second_iteration(campaign, root)
    process = start(root, prefect_server, f"cluster.address={ray_cluster.address}", "rollout.loop=replicas")

    def hosted() -> list[psutil.Process]:
        """What plays, the engine below it, and the learner."""
        time.sleep(0.2)
        below = [child for one in ray_cluster.raylets for child in psutil.Process(one.pid).children(recursive=True)]
        found = []
        for child in below:
            with suppress(psutil.NoSuchProcess):
                if "infra.hosting" in child.cmdline():
                    found.append(child)
        return sorted(found, key=lambda child: child.create_time())

    wait_for(process, root, lambda: len(hosted()) == 3)
    hosted()[0].kill()
    printed = finish(process, root)
    assert re.search(
        r"rollout failed: the engine \(process \d+ on .*\) (did not start|died) \(killed by SIGKILL\)", printed
    )
    assert same_content(opened(root, printed), campaign)
    assert hosted() == []


@pytest.mark.slow
@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_two_ranks_on_two_nodes_are_one_and_their_state_goes_on_on_one(ray_cluster, tmp_path, zero_stage):
    config = config_of(ray_cluster, tmp_path / "runs", ranks=2, zero_stage=zero_stage)
    store = open_campaign(config.root, "c", config.model_dump(mode="json"))
    local = make_tiny_policy_folder(tmp_path / "policy")
    base, samples = put_folder(store, local, "policies/000000/a"), make_samples(local)
    one = config.model_copy(update={"learner": config.learner.model_copy(update={"ranks": 1})})

    def updated(places, folder, seed, uri, settings, state=None):
        group = places.learner(folder, settings, state=state)
        try:
            metrics = group.call("update", samples, seed=seed)
            group.call("store", store, uri)
            return metrics, group.call("stored")
        finally:
            group.kill()

    def weights(record):
        return load_file(folder_path(store, record) / "model.safetensors")

    def gap(first, second):
        return max(np.abs(first[name] - second[name]).max() for name in first)

    on_nodes, here = ClusterPlaces(config), LocalPlaces(one)
    try:
        metrics, stored = updated(on_nodes, on_nodes.folder(store, base), 3, "policies/000001/two", config.learner)
    finally:
        on_nodes.close()
    alone, stored_alone = updated(here, local, 3, "policies/000001/one", one.learner)
    assert metrics == pytest.approx(alone, rel=1e-4, abs=1e-5)
    assert gap(weights(stored), weights(stored_alone)) < 1e-5
    states = [file.path.rsplit("/", 1)[1] for file in stored.files if f"/{STATE_FOLDER}/state/" in file.path]
    shards = [f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in (0, 1)]
    assert [name for name in states if "optim" in name] == (shards if zero_stage else [])
    resumed = []
    for record, name in ((stored, "two"), (stored_alone, "one")):
        folder = folder_path(store, record)
        _, again = updated(here, folder, 4, f"policies/000002/{name}", one.learner, state=folder / STATE_FOLDER)
        resumed.append(weights(again))
    assert gap(*resumed) < 1e-5


@contextmanager
def counter(places):
    group = places.group("counter", "tests.hosted:Counter", 5, seats=[0], envs=[{}])
    try:
        yield group
    finally:
        group.kill()


def test_a_lost_actor_is_named_with_what_it_last_printed(ray_cluster):
    places = RayPlaces([{"CPU": 0.1}], 60.0)
    try:
        with counter(places) as group:
            process_id = group.call("process_id")

            def kill(_, lines_heard):
                os.kill(places.process_ids[0], signal.SIGKILL)

            with pytest.raises(
                InfrastructureError, match=r"(?s)the counter \(process \d+ on node .*\) was lost: .*Actor"
            ):
                group.call("say_and_hang", on_progress=kill)
        _, alive = psutil.wait_procs([psutil.Process(process_id)] if psutil.pid_exists(process_id) else [], timeout=10)
        assert [process for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []
        with pytest.raises(InfrastructureError, match=r"was lost|is gone"), counter(places) as group:
            group.call("add", 1)
    finally:
        places.close()


def test_of_a_driver_that_is_killed_no_actor_or_process_is_left(ray_cluster):
    command = [sys.executable, "-c", DRIVER, ray_cluster.address]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as driver:
        notes = told_by(driver)
        on_nodes = [psutil.Process(int(one)) for one in next(notes).split()]
        assert next(notes) == "1 said"  # its call hangs
        assert len(on_nodes) == 4  # two actors, and a process below each
        assert all(process.is_running() for process in on_nodes)
        driver.kill()
    _, alive = psutil.wait_procs(on_nodes, timeout=10)
    assert [process for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []


def test_what_does_not_fit_is_said_with_what_is_free(ray_cluster):
    with pytest.raises(InfrastructureError, match=r"no room within 1 s .*asked for 99 CPU; free, by node: .* CPU"):
        RayPlaces([{"CPU": 99.0}], 1.0)


def test_a_cluster_of_other_versions_is_refused(ray_cluster, tmp_path, monkeypatch):
    config = config_of(ray_cluster, tmp_path)
    check_cluster(config)
    ours = cluster.versions()
    monkeypatch.setattr(cluster, "versions", lambda: {**ours, "torch": "1.0"})
    with pytest.raises(
        ConfigError, match=rf"node .* has other versions: torch {re.escape(ours['torch'])} there, 1.0 here"
    ):
        check_cluster(config)


@pytest.mark.parametrize(
    ("environment", "line", "refused"),
    [
        ({}, "ray.__version__ = '2.0.0'", "Version mismatch"),
        ({"RAY_AUTH_TOKEN": "another"}, "", "its head does not take this process's token: set RAY_AUTH_MODE=token"),
        ({"RAY_AUTH_MODE": "disabled"}, "", "its head does not take this process's token: set RAY_AUTH_MODE=token"),
    ],
)
def test_a_cluster_of_another_ray_or_token_is_refused(ray_cluster, environment, line, refused):
    script = f"""
import ray
{line}
from infra.ray_nodes import connect
from opid_core.errors import ConfigError
try:
    connect("{ray_cluster.address}")
except ConfigError as error:
    print(error)
"""
    process = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, **environment}, capture_output=True, text=True, check=True
    )
    assert process.stdout.startswith(f"cluster.address: {ray_cluster.address}: {refused}")
    assert process.stdout.count("\n") == 1


def test_a_store_that_a_node_does_not_see_is_refused(ray_cluster, tmp_path, monkeypatch):
    store = open_campaign(tmp_path / "runs", "c", {"campaign": "c"})
    check_store(store)
    monkeypatch.setattr(cluster, "put_object", lambda *_: None)  # as where the driver writes to another disk
    with pytest.raises(ConfigError, match=r"root: node .* does not see .*/runs/c as this machine does"):
        check_store(store)


def test_more_than_the_cluster_has_is_refused(ray_cluster, tmp_path):
    with pytest.raises(ConfigError, match=r"learner.ranks 40: 40 CPUs are needed, the cluster has \d+ and no GPU"):
        check_cluster(config_of(ray_cluster, tmp_path, ranks=40))
    assert len(ray_nodes.nodes()) == 2
