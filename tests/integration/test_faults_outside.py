"""Campaigns that are ended, cut off from their storage, or moved to other ranks: they end as if nothing had been."""

from __future__ import annotations

import signal
import time

import psutil
import pytest
from safetensors.torch import load_file

from infra import local_s3
from infra.store import find_campaign, manifests, read_object, verify
from tests.integration.campaigns import finish, kill, opened, processes_of, same_content, start, wait_for

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]


def test_a_terminated_driver_leaves_no_process(tmp_path):
    root = tmp_path / "terminated"
    process = start(root, "iterations=1")
    wait_for(process, root, lambda: any("infra.hosting" in " ".join(p.cmdline()) for p in processes_of(root)))
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=60)
    psutil.wait_procs(processes_of(root), timeout=20)
    assert processes_of(root) == []


def test_storage_that_is_away_for_a_minute_is_waited_for(campaign, s3_server, tmp_path):
    """The same campaign on S3: the server is gone while the first iteration runs, and comes back."""
    data = tmp_path / "s3"
    server = local_s3.start(data, access_key="tests", secret_key="secret-of-the-tests", bucket="opid")
    root, address = tmp_path / "away", "s3://opid/campaigns"
    try:
        process = start(root, f"root={address}", f"storage.endpoint_url={server.endpoint_url}")

        def rolled_out() -> bool:
            time.sleep(0.2)
            store = find_campaign(address, "tiny", server.endpoint_url) if manifests_exist() else None
            return store is not None and read_object(store, "_stages/000001/000/rollout.json") is not None

        def manifests_exist() -> bool:
            return "0: committed" in (root / "output.txt").read_text(encoding="utf-8")

        wait_for(process, root, rolled_out)
        local_s3.stop(server)
        time.sleep(60)
        server = local_s3.start(
            data,
            access_key="tests",
            secret_key="secret-of-the-tests",
            bucket="opid",
            port=int(server.endpoint_url.rsplit(":", 1)[1]),
        )
        printed = finish(process, root)
        found = opened(address, printed, server.endpoint_url)
        assert same_content(found, campaign)
        assert len(manifests(found.store)) == 3
        verify(found.store)
    finally:
        local_s3.stop(server)


def test_another_number_of_ranks_goes_on_with_the_same_optimizer_state(campaign, tmp_path):
    """One rank, then two under torchrun: the second iteration rounds otherwise and is the same up to that."""
    root = tmp_path / "ranks"
    process = start(root)
    wait_for(process, root, (root / "tiny" / "_commits" / "000001.json").exists)
    kill(process)
    process = start(root, "learner.ranks=2")
    wait_for(process, root, (root / "tiny" / "_stages" / "000002" / "000" / "rollout.json").exists)
    for server in [p for p in processes_of(root) if "flows.prefect_api" in " ".join(p.cmdline())]:
        server.kill()  # the driver starts another, and its requests wait
    resumed = opened(root, finish(process, root))
    assert "Traceback" not in resumed.printed
    assert [manifest.iteration for manifest in resumed.chain] == [0, 1, 2]
    verify(resumed.store)
    assert resumed.rows("steps", 2) == campaign.rows("steps", 2)
    found, expected = (load_file(one.policy(2) / "model.safetensors") for one in (resumed, campaign))
    before = load_file(campaign.policy(1) / "model.safetensors")
    assert max(float((found[name] - expected[name]).abs().max()) for name in found) < 1e-5
    assert max(float((found[name] - before[name]).abs().max()) for name in found) > 5e-4
