"""Campaigns on local raylets that are lost, and on two replicas: what comes out is what one machine makes."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from infra import processes
from tests.clusters import raylets
from tests.conftest import S3_BUCKET
from tests.integration.adapters import LORA
from tests.integration.campaigns import (
    LIMIT_S,
    before_the_second_iteration,
    finish,
    opened,
    same_content,
    start,
    wait_for,
)

# Slow: hosting on raylets, and what is said of each loss, is in test_cluster.py and tests/infra/test_hosting.py.
pytestmark = [pytest.mark.integration, pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(1800)]


def hosted_on(node: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The engines and learners below a node."""
    found = []
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(node.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if "infra.hosting" in child.cmdline():
                    found.append(child)
    return found


def every_half_second(happened: Callable[[], bool]) -> Callable[[], bool]:
    """`happened`, asked less often: to look through all processes takes a while."""

    def asked() -> bool:
        time.sleep(0.5)
        return happened()

    return asked


def test_a_campaign_that_loses_its_node_and_then_its_head_ends_as_what_nothing_disturbed(
    campaign, prefect_server, tmp_path
):
    root = tmp_path / "runs"
    stages = before_the_second_iteration(campaign, root) / "_stages" / "000002" / "000"
    with raylets(3, cpus=2, head_works=False) as cluster:
        head, *nodes = cluster.raylets
        process = start(root, prefect_server, f"cluster.address={cluster.address}")
        wait_for(process, root, every_half_second(lambda: any(map(hosted_on, nodes))))
        (lost,) = (node for node in nodes if hosted_on(node))
        processes.kill(lost)  # with all that runs on it, as a machine that is gone
        wait_for(process, root, (stages / "rollout.json").exists)  # on the other node
        gcs = next(p for p in psutil.Process(head.pid).children(recursive=True) if "gcs" in p.name())
        gcs.kill()
        assert process.wait(timeout=LIMIT_S) != 0
    printed = (root / "output.txt").read_text(encoding="utf-8")
    assert "rollout failed: the engine" in printed
    assert "was lost" in printed
    with raylets(1, cpus=2) as cluster:
        printed = finish(start(root, prefect_server, f"cluster.address={cluster.address}"), root)
    assert "Resuming tiny after 1 of 2 iterations" in printed
    assert same_content(opened(root, printed), campaign)


def test_two_replicas_on_two_nodes_play_what_one_plays_each_time(campaign, prefect_server, tmp_path):
    def on_two_nodes(root: Path):
        before_the_second_iteration(campaign, root)
        options = (f"cluster.address={cluster.address}", "engine.replicas=2", "threads=2")
        return opened(root, finish(start(root, prefect_server, *options), root))

    with raylets(2, cpus=1) as cluster:  # a place on each
        first, second = on_two_nodes(tmp_path / "first"), on_two_nodes(tmp_path / "second")
    assert same_content(first, second)
    assert first.chain[2].execution["engine.replicas"] == 2
    assert first.table("steps", 2)["response_ids"].equals(campaign.table("steps", 2)["response_ids"])


@pytest.mark.parametrize(("nodes", "replicas"), [(1, 1), (1, 2), (2, 2)])
def test_adapters_on_nodes_are_those_of_one_machine_and_no_weights_pass_the_driver(
    prefect_server, s3_server, tmp_path, monkeypatch, nodes, replicas
):
    """Each iteration by a driver of its own, the second one goes on from the adapter of the first; both are evaluated.
    As many ranks as replicas. Each node has a cache and a temporary folder of its own."""
    many = (f"engine.replicas={replicas}", f"learner.ranks={replicas}", f"threads={replicas}")
    same = (*LORA, *many, "evaluation.every=1")
    alone, root = tmp_path / "alone", tmp_path / "runs"
    folders = [tmp_path / f"node-{number}" for number in range(nodes)]
    expected = opened(alone, finish(start(alone, prefect_server, *same), alone))
    for node in folders:
        (node / "temporary").mkdir(parents=True)

    def merged() -> list[list[Path]]:
        return [[*(node / "temporary").glob("opid-*/*/policies")] for node in folders]

    envs = [{"OPID_CACHE": str(node / "cache"), "TMPDIR": str(node / "temporary")} for node in folders]
    with raylets(nodes, cpus=2 // nodes, envs=envs) as cluster:
        stored, printed = f"s3://{S3_BUCKET}/{tmp_path.name}", ""
        storage = (f"root={stored}", f"storage.endpoint_url={s3_server.endpoint_url}")
        for number, loop in ((1, "driver"), (2, "replicas")):
            monkeypatch.setenv("OPID_CACHE", str(tmp_path / f"driver-{number}"))
            how = (f"iterations={number}", f"rollout.loop={loop}", f"cluster.address={cluster.address}")
            process = start(root, prefect_server, *same, *storage, *how)
            wait_for(process, root, lambda: all(merged()))
            printed = finish(process, root)
    found = opened(stored, printed, s3_server.endpoint_url)
    assert same_content(found, expected)
    assert [one.execution["learner.ranks"] for one in found.chain[1:]] == 2 * [replicas]
    assert {"evaluations"} <= {*found.chain[1].tables} & {*found.chain[2].tables}
    assert [*(tmp_path / "driver-2").rglob("*.safetensors")] == []
    for node in folders:
        read = sorted(path.relative_to(node / "cache").parts[2::2] for path in (node / "cache").rglob("*.safetensors"))
        assert read == [
            ("000000", "model.safetensors"),
            ("000001", "adapter_model.safetensors"),
            ("000002", "adapter_model.safetensors"),
        ]
    assert merged() == nodes * [[]]
