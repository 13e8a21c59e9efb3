"""Campaigns whose number type is decided on this machine, and in bfloat16 whatever this machine computes fast in."""

from __future__ import annotations

import pytest
import torch
from safetensors import safe_open

from infra.store import read_config
from tests.integration.campaigns import Campaign, finish, opened, start

pytestmark = [pytest.mark.integration, pytest.mark.slow]  # each runs a campaign twice

AUTO = ("learner.dtype=auto", "engine.dtype=auto")
BFLOAT16 = ("learner.dtype=bfloat16", "engine.dtype=bfloat16", "engine.canary_tolerance=0.1")


def stored_types(campaign: Campaign) -> tuple[str, str, float]:
    config = read_config(campaign.store)
    return config["learner"]["dtype"], config["engine"]["dtype"], config["engine"]["canary_tolerance"]


def weight_types(campaign: Campaign, version: int) -> set[torch.dtype]:
    with safe_open(campaign.policy(version) / "model.safetensors", framework="pt") as weights:
        return {weights.get_tensor(name).dtype for name in weights.keys()}  # noqa: SIM118 - no mapping


def engine_gap(campaign: Campaign, iteration: int) -> float:
    """Mean gap between the engine's and the learner's log-prob of a sampled token, in nats."""
    (gap,) = [row["value"] for row in campaign.rows("metrics", iteration) if row["name"] == "rescore/engine_gap_mean"]
    return gap


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is asked, not measured")
def test_auto_is_decided_once_and_kept_when_the_campaign_goes_on(tmp_path, prefect_server):
    finish(start(tmp_path, prefect_server, *AUTO, "iterations=1"), tmp_path)
    begun = opened(tmp_path, "")
    learner, engine, tolerance = stored_types(begun)
    assert (learner, tolerance) in (("float32", 0.001), ("bfloat16", 0.1))
    assert engine == learner
    printed = finish(start(tmp_path, prefect_server, *AUTO, "iterations=2"), tmp_path)
    assert f"dtype auto: learner {learner}, engine {learner}: a CPU thread multiplies" in printed
    assert f"dtype auto: learner {learner}, engine {learner}, as campaign tiny began" in printed
    longer = opened(tmp_path, printed)
    assert len(longer.chain) == 3
    assert stored_types(longer) == (learner, engine, tolerance)
    assert {weights for version in (1, 2) for weights in weight_types(longer, version)} == {getattr(torch, learner)}


def test_a_campaign_in_bfloat16_commits_and_goes_on_in_it_under_auto(tmp_path, prefect_server):
    """On a CPU without units for it, `auto` alone would have chosen float32."""
    finish(start(tmp_path, prefect_server, *BFLOAT16, "iterations=1"), tmp_path)
    printed = finish(start(tmp_path, prefect_server, *AUTO, "iterations=2"), tmp_path)
    assert "dtype auto: learner bfloat16, engine bfloat16, as campaign tiny began" in printed
    campaign = opened(tmp_path, printed)
    assert len(campaign.chain) == 3
    assert stored_types(campaign) == ("bfloat16", "bfloat16", 0.1)
    assert {weights for version in (1, 2) for weights in weight_types(campaign, version)} == {torch.bfloat16}
    assert all(1e-5 < engine_gap(campaign, iteration) < 0.1 for iteration in (1, 2))  # two in float32 are closer
