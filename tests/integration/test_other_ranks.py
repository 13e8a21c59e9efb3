"""A campaign that is moved to other ranks, and loses its Prefect server: it ends as if nothing had been."""

from __future__ import annotations

import pytest
from safetensors.torch import load_file

from infra.store import verify
from tests.integration.campaigns import before_the_second_iteration, finish, opened, processes_of, start, wait_for

# Slow: that another number of ranks goes on with the state is in test_learner_ranks.py, a lost server in test_serve.py.
pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(1800)]


def test_another_number_of_ranks_goes_on_with_the_same_optimizer_state(campaign, prefect_database, tmp_path):
    """One rank, then two under torchrun: the second iteration rounds otherwise and is the same up to that. Its episodes
    are played beside the engine, and are the same."""
    root = tmp_path / "ranks"
    folder = before_the_second_iteration(campaign, root)
    process = start(root, prefect_database, "learner.ranks=2", "rollout.loop=replicas")
    wait_for(process, root, (folder / "_stages" / "000002" / "000" / "rollout.json").exists)
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
