"""What the replicas of the simulations count."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks import fleet_actors
from benchmarks.fleet_actors import step_seconds
from benchmarks.sleeping import Answer, Sampling, SleepingReplica

POLICY = Path("policy")


def test_a_step_gives_each_response_a_token_until_it_has_those_of_its_seed():
    sampling = Sampling(step_s=0.5, tokens=10, answer=[7, 8])
    sampling.submit("a", seed=0)  # 5 tokens
    sampling.submit("b", seed=14)  # 5 + 14 % 11
    assert sampling.advance(max_steps=2) == (1.0, [])
    assert sampling.remaining == {"a": 3, "b": 6}
    assert sampling.advance() == (1.5, [Answer("a", [7, 8], [-1.0, -1.0])])
    assert sampling.advance(max_steps=9) == (1.5, [Answer("b", [7, 8], [-1.0, -1.0])])
    assert (sampling.generated, sampling.worked_s) == (13, 4.0)


def test_a_replica_answers_as_an_engine_does():
    replica = SleepingReplica(POLICY, 0.0, 10, [7], b"")
    submissions = [{"request_id": "a", "prompt_ids": [1], "max_tokens": 9, "temperature": 1.0, "seed": 1}]
    assert replica.advance(submissions, 1) == ([], 1, POLICY)
    assert replica.advance([]) == ([Answer("a", [7], [-1.0])], 5, POLICY)


def test_a_replica_plays_episodes_of_so_many_turns():
    replica = SleepingReplica(POLICY, 0.0, 10, [7], b"episode")
    # Of a the turns have 5 and 5 + 7919 % 11 = 15 tokens, of b 8 and 5 + 7922 % 11 = 7.
    assert replica.play([("a", 0), ("b", 3)], 2) == (("b", b"episode"), 15 + 15, POLICY)
    assert replica.go_on() == (("a", b"episode"), 5, POLICY)
    assert replica.go_on() == (None, 0, POLICY)


def test_a_step_by_the_cost_model_reads_the_weights_whatever_the_number_of_replicas():
    """3.09 B parameters of two bytes over 0.77 x 3.35 TB/s, and 2.5 ms of the host; caches and prompts come on top."""
    assert step_seconds(2) == pytest.approx(step_seconds(64))
    assert 0.0024 + 0.0025 < step_seconds(2) < 0.006


def test_what_ray_prints_is_not_in_the_table(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["fleet_actors"])
    monkeypatch.setattr(fleet_actors, "measure", lambda given, tell: (print("a warning"), tell("| a row |")))
    fleet_actors.main()
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("| a row |\n", "a warning\n")
