"""The cost model, with numbers by hand."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flows.cost import (
    CARDS,
    Assumptions,
    Card,
    Cost,
    analyzer_calls,
    assumptions,
    calibration,
    card_called,
    card_of,
    estimate,
    first_guess,
    flops_a_token,
    known_card,
    measured_seconds,
    passes,
    play_seconds,
)
from flows.reports.standing import LONGEST_S
from opid_core.config import CampaignConfig, build_config
from opid_core.config.presets import merge
from opid_core.errors import ConfigError
from opid_core.policy_shape import PolicyShape
from tasks.results import evaluation_due

BASE: dict[str, Any] = {
    "campaign": "c",
    "iterations": 10,
    "environment": {"max_steps": 12, "history_length": 1},
    "rollout": {"tasks_per_iteration": 2, "group_size": 4, "max_response_tokens": 100},
    "engine": {"dtype": "bfloat16"},
    "method": {"name": "grpo"},
    "learner": {"dtype": "bfloat16", "ranks": 2, "gradient_checkpointing": True},
    "evaluation": {"tasks": 8, "every": 5, "temperatures": [1.0, 0.4]},
}
SHAPE = PolicyShape(parameters=1_100_000, layers=2, hidden_size=100, vocab_size=1000, key_value_size=50)
"""100,000 of the weights are looked up: a token takes 2,000,000 FLOP, and 2 * 2 * 100 for each of its context."""
CARD = Card(peak_flops=1e9, bandwidth=1e9)
ASSUMED = Assumptions(
    score_share=0.5,
    update_share=0.25,
    prefill_share=0.5,
    bandwidth_share=0.5,
    token_overhead_s=0.01,
    cached_prompts=0.5,
    turn_s=0.1,
    storage_bytes_per_s=1e6,
    other_s=3.0,
)


def config_of(**changes: Any) -> CampaignConfig:
    return build_config(merge(BASE, changes))


def test_the_learners_seconds_by_hand():
    """10 steps of 12, prompts of 300, then 330 tokens, responses of 100: 8 * (300 + 9 * 330 + 10 * 100) = 34,160 tokens
    of 80 samples, 427 each."""
    cost = estimate(config_of(), SHAPE, CARD, ASSUMED)
    assert (cost.samples, cost.tokens) == (80, 34_160)
    forward = 2_000_000 + 400 * 427  # FLOP a token
    assert cost.seconds["rescore"] == pytest.approx(2 * 34_160 * forward / (0.5 * 2e9))  # plain and reference, 2 ranks
    # Forward, backward as two, forward again: 4; weights (2 bytes) and their state (2 + 8 + 4), and the tables.
    state_bytes = 1_100_000 * 14
    weights_bytes = 1_100_000 * 2 + 8 * 12 * 2048 * 2
    update_s = 4 * 34_160 * forward / (0.25 * 2e9)
    assert cost.seconds["rollout"] - 2.2 > state_bytes / 1e6  # the state is stored in the background of a rollout
    assert cost.seconds["update"] == pytest.approx(update_s + weights_bytes / 1e6)
    assert (cost.seconds["extract_skills"], cost.seconds["other"]) == (0, 3)
    total_s = sum(cost.seconds.values())
    assert cost.hours == pytest.approx(10 * total_s / 3600)
    assert (cost.gpus, cost.gpu_hours) == (2, 2 * cost.hours)
    # The engine has one of the two; nothing computes while weights are pushed (2.2 s each), stored, or in between.
    rollout_s = cost.seconds["rollout"] - 2.2
    evaluate_s = cost.seconds["evaluate"] - 2.2 * 3 / 10
    busy_s = rollout_s + evaluate_s + 2 * (cost.seconds["rescore"] + update_s)
    assert cost.busy == pytest.approx(busy_s / (2 * total_s))


@given(
    iterations=st.integers(0, 40),
    every=st.integers(0, 12),
    final_tasks=st.none() | st.integers(1, 9),
)
def test_evaluations_are_those_that_are_due(iterations, every, final_tasks):
    config = config_of(iterations=iterations, evaluation={"every": every, "final_tasks": final_tasks})
    due = [count for i in range(iterations + 1) if (count := evaluation_due(config, i))]
    played_s = sum(play_seconds(config, SHAPE, CARD, ASSUMED, 2 * count) for count in due)  # at two temperatures
    spread_s = (played_s + 2.2 * len(due)) / max(1, iterations)
    assert estimate(config, SHAPE, CARD, ASSUMED).seconds["evaluate"] == pytest.approx(spread_s)


def test_a_state_is_waited_for_as_far_as_its_upload_is_longer_than_a_rollout():
    alone = estimate(config_of(storage={"background": False}), SHAPE, CARD, ASSUMED).seconds
    together = estimate(config_of(), SHAPE, CARD, ASSUMED).seconds
    assert alone["update"] - together["update"] == pytest.approx(15.4)  # 1,100,000 weights, 14 bytes each, 1 MB/s
    at_once = Card(peak_flops=1e30, bandwidth=1e30)  # 80 turns of 0.1 s, 10 steps of 100 tokens of 0.01 s: 18 s
    slower = Assumptions(**{**vars(ASSUMED), "storage_bytes_per_s": 0.5e6})  # 30.8 s, of which 12.8 s are left
    alone = estimate(config_of(storage={"background": False}), SHAPE, at_once, slower).seconds
    together = estimate(config_of(), SHAPE, at_once, slower).seconds
    assert alone["update"] - together["update"] == pytest.approx(18)


def test_of_experts_a_token_multiplies_its_own():
    """Half of the weights are other experts': they are stored and pushed all the same."""
    sparse = replace(SHAPE, parameters=2_100_000, idle_parameters=1_000_000)
    assert flops_a_token(sparse, 50) == flops_a_token(SHAPE, 50)
    dense = replace(sparse, idle_parameters=0)
    few, many = (estimate(config_of(), shape, CARD, ASSUMED) for shape in (sparse, dense))
    assert few.seconds["rescore"] == estimate(config_of(), SHAPE, CARD, ASSUMED).seconds["rescore"]
    assert few.disk_mib == many.disk_mib


@pytest.mark.parametrize(
    ("changes", "times"),
    [
        ({"gradient_checkpointing": False}, {"update": 3 / 4}),
        ({"zero_stage": 3}, {"update": 2, "rescore": 2}),
        ({"epochs": 2}, {"update": 2}),
        ({"kl_coefficient": 0.0}, {"rescore": 1 / 2}),
    ],
)
def test_what_changes_the_learners_seconds(changes, times):
    at_once = Assumptions(storage_bytes_per_s=1e30)
    before, after = (estimate(config_of(learner=c), SHAPE, CARD, at_once).seconds for c in ({}, changes))
    for phase in ("rollout", "rescore", "update"):
        assert after[phase] == pytest.approx(times.get(phase, 1) * before[phase])


def test_a_rollout_by_hand():
    """Two steps of one: prompts of 300 and 330 tokens, of which half are cached; responses of 100."""
    config = config_of(environment={"max_steps": 2})
    cache_bytes = 2 * 2 * 50 * 2  # a token: keys and values of 2 layers, 2 bytes
    expected_s = 8 * 2 * 0.1
    for prompt in (300, 330):
        read_s = (1_100_000 * 2 + 8 * (prompt + 50) * cache_bytes) / (0.5 * 1e12)
        multiply_s = 8 * (2_000_000 + 400 * (prompt + 100)) / (0.5 * 1e9)
        assert multiply_s > read_s
        expected_s += 100 * (multiply_s + 0.01) + 0.5 * prompt * multiply_s
    assert play_seconds(config, SHAPE, Card(1e9, 1e12), ASSUMED, 8) == pytest.approx(expected_s)
    # On a card that multiplies at once, sampling takes as long as reading does.
    read_s = sum(100 * (1_100_000 * 2 + 8 * (p + 50) * cache_bytes) / (0.5 * 1e6) for p in (300, 330))
    slow = play_seconds(config, SHAPE, Card(1e30, 1e6), ASSUMED, 8)
    assert slow == pytest.approx(read_s + 2 * 100 * 0.01 + 8 * 2 * 0.1)
    # Half as many at once are as long in reading weights twice.
    few = config_of(environment={"max_steps": 2}, engine={"max_concurrent": 4})
    assert play_seconds(few, SHAPE, CARD, ASSUMED, 8) == pytest.approx(2 * play_seconds(few, SHAPE, CARD, ASSUMED, 4))


def test_replicas_that_play_prepare_their_own_turns():
    """Eight episodes of two steps, 0.1 s a turn: all 16 in the driver, or 4 beside each of four replicas."""
    of = {"environment": {"max_steps": 2}, "engine": {"replicas": 4}, "learner": {"ranks": 4}}
    by_driver, by_replicas = (
        play_seconds(config_of(**of, rollout={"loop": loop}), SHAPE, CARD, ASSUMED, 8)
        for loop in ("driver", "replicas")
    )
    assert by_driver - by_replicas == pytest.approx((16 - 4) * 0.1)


def test_cards_of_the_engine_alone_are_held_too():
    """Two replicas of two cards beside one rank: four cards, of which the learner uses one."""
    alone = config_of(learner={"ranks": 1})
    more = config_of(learner={"ranks": 1}, engine={"replicas": 2, "tensor_parallel": 2})
    one, four = (estimate(config, SHAPE, CARD, ASSUMED) for config in (alone, more))
    assert (one.gpus, four.gpus, four.gpu_hours) == (1, 4, 4 * four.hours)
    assert four.seconds["rescore"] == one.seconds["rescore"]
    assert play_seconds(more, SHAPE, CARD, ASSUMED, 16) < play_seconds(alone, SHAPE, CARD, ASSUMED, 16)
    learning_s = one.busy * sum(one.seconds.values()) - played(one)
    assert four.busy == pytest.approx((4 * played(four) + learning_s) / (4 * sum(four.seconds.values())))
    on_cpu = replace(CARD, is_cpu=True)
    assert estimate(more, SHAPE, on_cpu, ASSUMED).hours == pytest.approx(one.hours)  # the threads are the same
    assert estimate(more, SHAPE, on_cpu, ASSUMED).gpus == 1


def played(cost: Cost) -> float:
    """Seconds in which the engine computes, an iteration: a push takes 2.2 s, there are three before panels in ten."""
    return cost.seconds["rollout"] - 2.2 + cost.seconds["evaluate"] - 2.2 * 3 / 10


def test_evaluations_are_spread_over_all_iterations():
    """Before, after 5 and after 10 iterations: 8 tasks at two temperatures, 16 episodes each time."""
    config = config_of()
    one_s = play_seconds(config, SHAPE, CARD, ASSUMED, 16)
    push_s = 2.2
    assert estimate(config, SHAPE, CARD, ASSUMED).seconds["evaluate"] == pytest.approx(3 * (one_s + push_s) / 10)


BANK = "configs/skill_banks/alfworld.json"


@pytest.mark.parametrize(
    ("method", "count", "calls"),
    [
        ({"name": "grpo"}, 2, 0),
        ({"name": "opid"}, 3, 8),
        ({"name": "opid", "lambda_episode": 0.0, "lambda_step": 0.0}, 2, 0),
        ({"name": "opid", "routing": "additive"}, 4, 8),
        ({"name": "opid", "placebo_episode": "swapped", "placebo_step": "swapped"}, 4, 8),
        ({"name": "rlsd", "skill_bank": BANK}, 3, 0),
        ({"name": "rlsd", "teacher": "routed"}, 3, 8),
        ({"name": "skill_grpo", "skill_bank": BANK}, 2, 0),
    ],
)
def test_forward_passes_and_calls_of_a_method(method, count, calls):
    config = config_of(method=method, analyzer={"backend": "llm"})
    assert (passes(config), analyzer_calls(config)) == (count, calls)
    assert analyzer_calls(config_of(method=method)) == 0


def test_a_campaign_that_has_run_tells_the_seconds():
    metrics = {
        "push": 2,
        "rollout": 10,
        "extract_skills": 1,
        "rescore": 4,
        "update": 6,
        "store_policy": 3,
        "overhead": 7,
    }
    measured = measured_seconds({f"seconds/{name}_s": float(value) for name, value in metrics.items()})
    assert measured == {"rollout": 12, "extract_skills": 1, "rescore": 4, "update": 9, "other": 3}
    assert measured_seconds({}) == {}
    estimated = {"rollout": 6.0, "extract_skills": 0.0, "rescore": 8.0, "update": 9.0, "evaluate": 5.0, "other": 5.0}
    factors = calibration([(measured, estimated)])
    assert factors == {"rollout": 2, "rescore": 0.5, "update": 1, "other": 0.6, "evaluate": 2}
    both = calibration([(measured, estimated), ({**measured, "rescore": 20.0}, estimated)])
    assert both["rescore"] == (4 + 20) / 16
    before, after = (estimate(config_of(), SHAPE, CARD, ASSUMED, factors=f).seconds for f in ({}, factors))
    assert after == {phase: factors.get(phase, 1) * seconds for phase, seconds in before.items()}


def test_cards():
    assert known_card("rtx4090") == "RTX4090"
    with pytest.raises(ConfigError, match=r"--card: .*'H1000'.*H100, H100-PCIe, .*, CPU"):
        known_card("H1000")
    config = config_of(learner={"ranks": 2}, threads=4)
    of_rank = Card(2 * CARDS["CPU"].peak_flops, CARDS["CPU"].bandwidth, is_cpu=True)
    assert card_of(config, "cpu") == ("CPU (4 threads)", of_rank)
    assert card_of(config, "h200") == ("H200", CARDS["H200"])


def test_a_card_that_is_not_here_is_said_to_be_assumed(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    name, card = card_of(config_of(learner={"dtype": "bfloat16"}), None)
    assert name == "H100 (assumed: this machine has no GPU)"
    assert card == CARDS["H100"]
    assert card_of(config_of(learner={"dtype": "float32"}), None)[0].startswith("CPU")
    assert card_of(config_of(learner={"dtype": "bfloat16"}), None, by_auto=True)[0].startswith("CPU")


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "no data sheet of this machine's MIG slice"),
        ("NVIDIA B200", "no data sheet of this machine's GPU"),
    ],
)
def test_a_slice_of_a_card_is_not_taken_for_the_whole(monkeypatch, told, why):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: told)
    assert card_of(config_of(), None) == (f"H100 (assumed: {why})", CARDS["H100"])
    assert card_of(config_of(), None, by_auto=True) == (f"H100 (assumed: {why})", CARDS["H100"])


def test_prompts_of_one_length_have_one_number():
    assert "prompts of 96 tokens" in assumptions(config_of(rollout={"max_prompt_tokens": 96}))
    assert "prompts of 300 to 330 tokens" in assumptions(config_of())


@pytest.mark.parametrize(
    ("told", "name"),
    [
        ("NVIDIA A100-SXM4-40GB", "A100-40GB"),
        ("NVIDIA A100-PCIE-40GB", "A100-40GB"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA A100 80GB PCIe", "A100-PCIe"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100-PCIe"),
        ("NVIDIA H100 NVL", "H100-NVL"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA H200 NVL", "H200-NVL"),
        ("NVIDIA L40S", "L40S"),
        ("GeForce RTX 3090", "RTX3090"),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA A100-SXM4-40GB MIG 3g.20gb", None),
        ("NVIDIA H20", None),
        ("NVIDIA GeForce RTX 4090", "RTX4090"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GeForce RTX 3090 Ti", None),
        ("NVIDIA RTX A1000", None),
        ("NVIDIA GH200 480GB", None),
    ],
)
def test_a_card_is_known_by_what_its_driver_calls_it(told, name):
    assert card_called(told) == name


def test_what_a_campaign_is_expected_to_take_is_told_where_card_and_policy_are_known(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = config_of(learner={"dtype": "float32", "ranks": 1}, engine={"dtype": "float32"}, threads=4)
    monkeypatch.setattr("flows.cost.planned_shape", lambda config: SHAPE)
    expected = timedelta(seconds=round(3600 * estimate(config, SHAPE, card_of(config, None)[1]).hours))
    assert (first_guess(config) or "").startswith(f"Expected: about {expected} on 1 x CPU (4 threads), an estimate ")
    assert first_guess(config_of()) is None  # an H100 is assumed, which is not what it runs on
    assert "CPU" in (first_guess(config_of(), by_auto=True) or "")
    endless = config.model_copy(update={"iterations": 10**15})
    assert f"about {timedelta(seconds=LONGEST_S)} on" in (first_guess(endless) or "")
    elsewhere = config_of(learner={"dtype": "float32"}, cluster={"address": "host:6379"})
    assert first_guess(elsewhere) is None
    monkeypatch.undo()
    assert first_guess(config_of(learner={"dtype": "float32"}, policy=str(tmp_path))) is None
