"""The demonstrator: what it says it holds and sees is true, and what it writes is what the environment reads."""

from __future__ import annotations

import pytest

import envs
from envs.alfworld import parse_action, response_text
from envs.alfworld.expert import AlfworldExpert, kind_of
from envs.base import Decision, Environment, HasExpert, result_of

TASK = "Your task is to: put a clean mug in cabinet."
ROOM = (
    "You are in the middle of a room. Looking quickly around you, you see a cabinet 1, a countertop 1, and a "
    "sinkbasin 1."
)
GOES = ["go to cabinet 1", "go to countertop 1", "go to sinkbasin 1", "inventory", "look"]

# What is on offer, the decision that is due, and what the world answers to it.
EPISODE = (
    (
        GOES,
        Decision("go to countertop 1", "hold nothing. see no mug. find mug"),
        "You arrive at countertop 1. On the countertop 1, you see a fork 1, and a mug 2.",
    ),
    (
        [*GOES, "take fork 1 from countertop 1", "take mug 2 from countertop 1"],
        Decision("take mug 2 from countertop 1", "hold nothing. see mug 2. take mug"),
        "You pick up the mug 2 from the countertop 1.",
    ),
    (
        [*GOES, "move mug 2 to countertop 1"],
        Decision("go to sinkbasin 1", "hold mug 2. see no mug. clean mug"),
        "You arrive at sinkbasin 1. On the sinkbasin 1, you see nothing.",
    ),
    (
        [*GOES, "clean mug 2 with sinkbasin 1", "move mug 2 to sinkbasin 1"],
        Decision("clean mug 2 with sinkbasin 1", "hold mug 2. see no mug. clean mug"),
        "You clean the mug 2 using the sinkbasin 1.",
    ),
    (
        [*GOES, "clean mug 2 with sinkbasin 1", "move mug 2 to sinkbasin 1"],
        Decision("go to cabinet 1", "hold mug 2. see no mug. put mug in cabinet"),
        "You arrive at cabinet 1. The cabinet 1 is closed.",
    ),
    (
        [*GOES, "open cabinet 1"],
        Decision("open cabinet 1", "hold mug 2. see no mug. open cabinet"),
        "You open the cabinet 1. The cabinet 1 is open. In it, you see a mug 1.",
    ),
    (
        [*GOES, "close cabinet 1", "move mug 2 to cabinet 1"],
        Decision("move mug 2 to cabinet 1", "hold mug 2. see mug 1. put mug in cabinet"),
        "You move the mug 2 to the cabinet 1.",
    ),
)


def test_the_thought_names_what_is_held_and_seen():
    demonstrator = AlfworldExpert(TASK, ROOM)
    for offered, expected, answer in EPISODE:
        assert demonstrator.decide(offered) == expected
        demonstrator.observe(expected.action, answer)


def test_with_the_object_in_hand_a_lamp_task_looks_for_the_lamp():
    demonstrator = AlfworldExpert("Your task is to: look at mug under the desklamp.", ROOM)
    demonstrator.observe("go to countertop 1", EPISODE[0][2])
    demonstrator.observe("take mug 2 from countertop 1", EPISODE[1][2])
    assert demonstrator.decide(GOES).thought.startswith("hold mug 2. see no desklamp. ")
    demonstrator.observe("go to cabinet 1", "You arrive at cabinet 1. On the cabinet 1, you see a desklamp 1, a mug 1.")
    decision = demonstrator.decide([*GOES, "use desklamp 1"])
    assert decision == Decision("use desklamp 1", "hold mug 2. see desklamp 1. use desklamp")


@pytest.mark.parametrize("decision", [expected for _, expected, _ in EPISODE])
def test_responses_parse_back(decision):
    text = response_text(decision)
    assert text == f"<think>{decision.thought}</think><action>{decision.action}</action>"
    assert parse_action(text) == (decision.action, True)


def small(task_count: int) -> tuple[Environment, list]:
    environment = envs.make("alfworld", {"generator": {"size": "small", "seed": 5}})
    return environment, list(environment.tasks("train")[:task_count])


def test_in_generated_games_the_thought_is_true_and_the_game_is_won():
    """Held and seen are checked against the world's own facts; 12 games: two of every type."""
    environment, tasks = small(12)
    assert isinstance(environment, HasExpert)
    for task in tasks:
        observation = result_of(environment.reset(task))
        expert, won = environment.expert(observation), False
        for _ in range(40):
            decision = expert.decide(environment.admissible_actions)
            held, seen = decision.thought.split(". ")[:2]
            carried = result_of(environment.step("inventory")).observation
            if held == "hold nothing":
                assert carried == "You are not carrying anything."
            else:
                assert carried == f"You are carrying: a {held.removeprefix('hold ')}."
            name = seen.removeprefix("see ")
            if not name.startswith("no "):
                # What is seen can be touched from here, unless the hand is full or it is a lamp.
                on_offer = environment.admissible_actions
                assert held != "hold nothing" or any(
                    action.startswith(f"take {name} from") or action == f"use {name}" for action in on_offer
                )
                assert kind_of(name) in environment.task_text
            assert parse_action(environment.response_text(decision)) == (decision.action, True)
            assert decision.action in environment.admissible_actions
            result = result_of(environment.step(decision.action))
            expert.observe(decision.action, result.observation)
            if result.won:
                won = True
                break
        assert won, task.task_id
