"""The adapter on Gymnasium's own environments, and on ones of a user's own in text."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from envs.base import Environment, HasExpert, HasSplits, HasStateKey, Task, action_words_of, make, state_key_of
from envs.gymnasium import TableExpert
from opid_core.errors import ConfigError, EnvironmentFault
from opid_core.rollout.prompting import render
from opid_core.warm_start import require_expert

gymnasium = pytest.importorskip("gymnasium", reason="needs the extra `gymnasium`")
LAKE = {"actions": ["left", "down", "right", "up"], "observation": "rendering", "arguments": {"is_slippery": False}}
TAXI = {
    "id": "Taxi-v4",
    "actions": ["south", "north", "east", "west", "pick up", "drop off"],
    "observation": "rendering",
    "success_from": 20,
}
TEXT = "tests.envs.text_world:Echo-v0"


def started(options: dict[str, Any], seed: int = 0) -> tuple[Any, str]:
    """An environment at the beginning of the episode of `seed`, and what is seen."""
    environment = make("gymnasium", options)
    return environment, str(environment.reset(Task(f"seed-{seed}", "", seed)))


def played(environment: Any, actions: list[str]) -> list[tuple[str, float, bool, bool]]:
    results = [environment.step(action) for action in actions]
    return [(result.observation, result.reward, result.done, result.won) for result in results]


def test_a_missing_package_is_told_before_any_work(monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(ConfigError, match=r"environment\.name: .*opid\[gymnasium\]"):
        make("gymnasium", {"task": "not asked for before"})


def test_held_out_seeds_come_before_those_of_train():
    environment = make("gymnasium", {"train": 3, "valid_unseen": 2})
    assert isinstance(environment, HasSplits)
    assert {split: [task.payload for task in environment.tasks(split)] for split in environment.splits()} == {
        "train": [2, 3, 4],
        "valid_unseen": [0, 1],
    }
    assert environment.tasks("train")[0] == Task("seed-2", "FrozenLake-v1", 2)
    with pytest.raises(ConfigError, match=r"split: .*'test'.*train, valid_unseen"):
        environment.tasks("test")


def test_a_drawn_world_with_named_actions():
    environment, seen = started(LAKE)
    assert state_key_of(environment) == "0"
    assert seen == "\n[S]FFF\nFHFH\nFFFH\nHFFG"
    assert environment.admissible_actions == ["left", "down", "right", "up"]
    assert played(environment, ["down", "jump", "Right"])[1:] == [("Nothing happens.", 0.0, False, False)] * 2
    assert environment.state_key() == "4"
    assert played(environment, ["right"]) == [("  (Right)\nSFFF\nF[H]FH\nFFFH\nHFFG", 0.0, True, False)]
    won = played(started(LAKE)[0], ["down", "down", "right", "down", "right", "right"])[-1]
    assert won == ("  (Right)\nSFFF\nFHFH\nFFFH\nHFF[G]", 1.0, True, True)


def test_one_seed_is_one_episode_and_another_is_another():
    slippery = {**LAKE, "arguments": {"success_rate": 0.5}}
    actions = ["right", "down"] * 10

    def places(seed: int) -> list[str]:
        environment, _ = started(slippery, seed)
        keys = []
        for action in actions:
            if environment.step(action).done:
                break
            keys.append(environment.state_key())
        return keys

    assert places(3) == places(3)
    assert len({tuple(places(seed)) for seed in range(8)}) > 1


def test_masked_actions_are_not_offered():
    environment, seen = started(TAXI, 300)
    assert seen.splitlines()[1] == "|<magenta R>: | : :G|"
    assert seen.splitlines()[4:6] == ["| |[ ]: | : |", "|Y| : |<blue B>: |"]
    assert environment.admissible_actions == ["south", "north", "east"]
    assert environment.step("west").observation == "Nothing happens."


@pytest.mark.parametrize(("options", "best"), [(LAKE, 6), (TAXI, 14)])
def test_the_expert_of_a_table_wins_the_shortest_way(options, best):
    environment, seen = started(options, 300)
    expert, steps, result = environment.expert(seen), 0, None
    assert isinstance(expert, TableExpert)
    assert require_expert(environment) is environment
    while result is None or not result.done:
        decision = expert.decide(environment.admissible_actions)
        assert environment.parse_action(environment.response_text(decision)) == (decision.action, True)
        result, steps = environment.step(decision.action), steps + 1
    assert (result.won, result.reward, steps) == (True, 1.0, best)


def test_numbers_are_told_and_numbered_actions_without_names():
    environment, seen = started({"id": "Blackjack-v1", "task": "beat the dealer"}, 300)
    assert (seen, environment.admissible_actions, environment.state_key()) == ("18 1 0", ["0", "1"], "18 1 0")
    assert not isinstance(environment, HasExpert)
    assert environment.task_text == "Your task is to: beat the dealer"
    prompt = render(environment.prompt_parts(environment.task_text, [], seen, environment.admissible_actions, 5))
    assert prompt.splitlines()[1:6] == [
        "Your task is to: beat the dealer",
        "You are now at step 1. Current observation: 18 1 0",
        "Admissible actions:",
        "0",
        "1",
    ]
    assert played(environment, ["1"]) == [("23 1 0", 0.0, True, False)]


@pytest.mark.parametrize(
    ("options", "rewards", "won"),
    [
        ({"success": "reward", "success_from": 2}, [0.0, 1.0], True),
        ({"success": "return", "success_from": 3, "reward": "environment"}, [1.0, 2.0], True),
        ({"success": "return", "success_from": 4}, [0.0, 0.0], False),
        ({"success": "terminated"}, [0.0, 1.0], True),
        ({"success": "info.solved"}, [0.0, 1.0], True),
        ({"success": "info.other"}, [0.0, 0.0], False),
    ],
)
def test_rules_of_success_and_reward(options, rewards, won):
    environment, _ = started({"id": TEXT, "field": "text", **options})
    results = played(environment, ["Hello", "bye"])
    assert [(reward, done) for _, reward, done, _ in results] == [(rewards[0], False), (rewards[1], True)]
    assert [result[-1] for result in results] == [False, won]


def test_a_world_of_text_takes_any_text_of_its_space_as_it_was_written():
    environment, seen = started({"id": TEXT, "field": "text"}, seed=7)
    assert (seen, environment.admissible_actions) == ("Say something to 7.", [])
    assert not isinstance(environment, HasStateKey | HasExpert)
    action, is_valid = environment.parse_action("<think>I greet.</think><action> Hello </action>")
    assert (action, is_valid) == ("Hello", True)
    assert environment.step(action).observation == "Hello to you."
    assert environment.step("1").observation == "Nothing happens."  # no letter
    parts = environment.prompt_parts("Task.", [], seen, [], 5)
    assert (parts.actions, "admissible" in parts.turn) == ("", False)
    offering, _ = started({"id": TEXT, "field": "text", "actions": ["<your words>"]})
    assert offering.admissible_actions == ["<your words>"]
    assert action_words_of(offering).failed_observations == ("Nothing happens.",)


def test_where_the_observation_is_no_short_row_of_numbers_what_is_seen_is_the_state():
    environment, seen = started({"id": "tests.envs.text_world:Lights-v0", "observation": "rendering"})
    assert (seen, environment.step("1").observation) == ("00\n00", "01\n00")
    assert state_key_of(environment) is None


def test_a_world_that_fails_breaks_its_episode():
    environment, _ = started({"id": TEXT, "field": "text"})
    with pytest.raises(EnvironmentFault, match=r"gymnasium, tests.envs.text_world:Echo-v0: RuntimeError: it broke"):
        environment.step("fail")


@pytest.mark.parametrize("action", ["unpaid", "unknown", "endless", "tellnothing"])
def test_a_reward_that_is_no_number_breaks_its_episode_alone(action):
    environment, _ = started({"id": TEXT, "field": "text", "reward": "environment"})
    with pytest.raises(EnvironmentFault, match=r"Echo-v0: (TypeError|ValueError|AttributeError)"):
        environment.step(action)


def test_a_world_that_says_nothing_is_told_as_that():
    environment, _ = started({"id": TEXT, "field": "text", "success_from": 9})
    assert environment.step("hush").observation == "Nothing is said."


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"id": "FrozenLak-v1"}, r"options\.id: FrozenLak-v1 cannot be made and reset: NameNotFound"),
        ({"id": "no_such_module:X-v0"}, r"options\.id: .* cannot be made and reset: ModuleNotFoundError"),
        ({"arguments": {"mapp": 1}}, r"options\.id: FrozenLake-v1 cannot be made and reset: TypeError"),
        ({"arguments": {"map_name": None}, "actions": LAKE["actions"]}, "begins in two ways with one seed"),
        ({"actions": ["left", "right"]}, r"options\.actions: FrozenLake-v1 has 4 actions"),
        ({"actions": ["left"] * 4}, r"options\.actions: FrozenLake-v1 has 4 actions, .* different names"),
        ({"id": "CartPole-v1"}, r"options\.observation: observations of CartPole-v1 .* are neither text nor"),
        ({"id": TEXT, "observation": "rendering"}, r"options\.observation: .* does not draw itself in characters"),
        ({"id": TEXT, "field": "txt"}, r"options\.field: observations have no field 'txt'; it has: text"),
        ({"id": TEXT, "field": "text", "arguments": {"continuous": True}}, r"options\.id: the actions of .* are Box"),
        ({"success": "luck"}, r"options\.success: String should match pattern"),
    ],
)
def test_what_cannot_be_played_in_text_is_one_config_error(options, message):
    with pytest.raises(ConfigError, match=message):
        make("gymnasium", options)


def test_it_is_an_environment():
    environment: Environment = make("gymnasium")
    assert not environment.admissible_actions
