from __future__ import annotations

import functools
import os
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.alfworld_conformance import compare
from benchmarks.textworld_oracle import OriginalWorld
from envs.alfworld.games import TASK_TYPES, Game, read_pack
from envs.alfworld.pddl import parse
from envs.alfworld.world import HELP, World
from opid_core.errors import DataError

PROBLEM = """
(define (problem small) (:domain alfred)
 (:objects agent1 - agent MugType AppleType KnifeType DeskLampType - otype
   FridgeType DeskType SinkBasinType MicrowaveType - rtype
   Mug_bar_1 Apple_bar_1 Apple_bar_2 Knife_bar_1 DeskLamp_bar_1 - object
   Fridge_bar_1 Desk_bar_1 Desk_bar_2 Sink_bar_1_bar_SinkBasin Microwave_bar_1 - receptacle
   loc_bar_0 loc_bar_1 loc_bar_2 loc_bar_3 loc_bar_4 - location)
 (:init (atLocation agent1 loc_bar_0)
   (receptacleAtLocation Fridge_bar_1 loc_bar_1) (receptacleAtLocation Desk_bar_1 loc_bar_2) ; two desks, one place
   (receptacleAtLocation Desk_bar_2 loc_bar_2) (receptacleAtLocation Sink_bar_1_bar_SinkBasin loc_bar_3)
   (receptacleAtLocation Microwave_bar_1 loc_bar_4) (openable Fridge_bar_1) (openable Microwave_bar_1)
   (receptacleType Fridge_bar_1 FridgeType) (receptacleType Desk_bar_1 DeskType) (receptacleType Desk_bar_2 DeskType)
   (receptacleType Sink_bar_1_bar_SinkBasin SinkBasinType) (receptacleType Microwave_bar_1 MicrowaveType)
   (objectType Mug_bar_1 MugType) (objectType Apple_bar_1 AppleType) (objectType Apple_bar_2 AppleType)
   (objectType Knife_bar_1 KnifeType) (objectType DeskLamp_bar_1 DeskLampType)
   (canContain FridgeType AppleType) (canContain DeskType AppleType) (canContain DeskType MugType)
   (pickupable Mug_bar_1) (pickupable Apple_bar_1) (pickupable Apple_bar_2) (pickupable Knife_bar_1)
   (isReceptacleObject Mug_bar_1) (toggleable DeskLamp_bar_1) (sliceable Apple_bar_1) (sliceable Apple_bar_2)
   (cleanable Apple_bar_1) (heatable Apple_bar_1) (coolable Apple_bar_1)
   (inReceptacle Mug_bar_1 Desk_bar_1) (inReceptacle DeskLamp_bar_1 Desk_bar_1) (inReceptacle Knife_bar_1 Desk_bar_2)
   (inReceptacle Apple_bar_1 Desk_bar_2) (inReceptacle Apple_bar_2 Fridge_bar_1)
   (objectAtLocation Mug_bar_1 loc_bar_2) (objectAtLocation DeskLamp_bar_1 loc_bar_2)
   (objectAtLocation Knife_bar_1 loc_bar_2) (objectAtLocation Apple_bar_1 loc_bar_2)
   (objectAtLocation Apple_bar_2 loc_bar_1))
 (:goal GOAL))
"""
GOALS = {
    "cool": "(and (exists (?r - receptacle) (exists (?o - object) (and (coolable ?o) (objectType ?o AppleType)"
    " (receptacleType ?r FridgeType) (isCool ?o) (inReceptacle ?o ?r)))))",
    "two": "(and (exists (?r - receptacle) (exists (?o1 - object) (and (objectType ?o1 AppleType)"
    " (receptacleType ?r FridgeType) (inReceptacle ?o1 ?r) (exists (?o2 - object) (and (not (= ?o1 ?o2))"
    " (objectType ?o2 AppleType) (receptacleType ?r FridgeType) (inReceptacle ?o2 ?r)))))))",
    "light": "(and (exists (?ot - object ?r - receptacle ?a - agent ?l - location) (and (objectType ?ot DeskLampType)"
    " (toggleable ?ot) (isToggled ?ot) (receptacleAtLocation ?r ?l) (atLocation ?a ?l) (inReceptacle ?ot ?r)))"
    " (exists (?o - object ?a - agent) (and (objectType ?o AppleType) (holds ?a ?o))))",
}


def small_game(goal: str = "cool") -> Game:
    formula = GOALS.get(goal, goal)
    return Game(f"small/{goal}", "pick_cool_then_place_in_recep", "put a thing", PROBLEM.replace("GOAL", formula))


def play(world: World, commands: list[str]) -> list[str]:
    return [world.step(command) for command in commands]


def test_transcript_of_a_won_game():
    world = World(small_game())
    assert world.reset() == (
        "-= Welcome to TextWorld, ALFRED! =-\n\nYou are in the middle of a room. Looking quickly around you, you see "
        "a desk 2, a desk 1, a fridge 1, a microwave 1, and a sinkbasin 1.\n\nYour task is to: put a thing."
    )
    going = ["go to desk 1", "go to desk 2", "go to fridge 1", "go to microwave 1", "go to sinkbasin 1"]
    assert world.admissible_commands == [*going, "help", "inventory", "look"]
    transcript = [
        ("look", "You are in the middle of a room. Looking quickly around you, you see nothing."),
        ("inventory", "You are not carrying anything."),
        ("go to desk 1", "You arrive at desk 1. On the desk 1, you see a apple 2, and a knife 1."),
        ("look", "You are facing the desk 2, and desk 1. Next to it, you see nothing."),
        ("examine desk 2", "On the desk 2, you see a desklamp 1, and a mug 1."),
        ("examine apple 2", "Nothing happens."),
        ("take mug 1 from desk 2", "You pick up the mug 1 from the desk 2."),
        ("take apple 2 from desk 1", "Nothing happens."),
        ("examine mug 1", "This is a normal mug 1. In it, you see nothing."),
        ("move mug 1 to desk 1", "You move the mug 1 to the desk 1."),
        ("look", "You are facing the desk 2, and desk 1. Next to it, you see a mug 1."),
        ("use desklamp 1", "You turn on the desklamp 1."),
        ("use desklamp 1", "You turn on the desklamp 1."),
        ("  take apple 2 from desk 1\n", "You pick up the apple 2 from the desk 1."),
        ("examine apple 2", "There's nothing special about apple 2."),
        ("inventory", "You are carrying: a apple 2."),
        ("go to fridge 1", "You arrive at fridge 1. The fridge 1 is closed."),
        ("move apple 2 to fridge 1", "Nothing happens."),
        ("cool apple 2 with fridge 1", "You cool the apple 2 using the fridge 1."),
        ("examine apple 2", "This is a cold apple 2."),
        ("go to sinkbasin 1", "You arrive at sinkbasin 1. On the sinkbasin 1, you see nothing."),
        ("clean apple 2 with sinkbasin 1", "You clean the apple 2 using the sinkbasin 1."),
        ("examine apple 2", "This is a cool and clean apple 2."),
        ("go to microwave 1", "You arrive at microwave 1. The microwave 1 is closed."),
        ("heat apple 2 with microwave 1", "You heat the apple 2 using the microwave 1."),
        ("examine apple 2", "This is a hot and clean apple 2."),
        ("go to fridge 1", "You arrive at fridge 1. The fridge 1 is closed."),
        ("cool apple 2 with fridge 1", "You cool the apple 2 using the fridge 1."),
        ("open fridge 1", "You open the fridge 1. The fridge 1 is open. In it, you see a apple 1."),
        ("open fridge 1", "Nothing happens."),
        ("OPEN FRIDGE 1", "Nothing happens."),
        ("", "Nothing happens."),
        ("help", HELP),
    ]
    for command, observation in transcript:
        assert world.step(command) == observation, command
        assert not world.won
    assert world.step("move apple 2 to fridge 1") == "You move the apple 2 to the fridge 1."
    assert world.won
    assert world.step("close fridge 1") == "You close the fridge 1."
    assert world.won
    play(world, ["open fridge 1", "take apple 2 from fridge 1"])
    assert not world.won
    assert world.reset().startswith("-= Welcome")
    assert not world.won
    assert world.step("go to desk 1").endswith("a apple 2, and a knife 1.")


def test_the_state_is_all_that_matters_for_winning_and_nothing_else():
    def state(*commands: str) -> str:
        world = World(small_game())
        world.reset()
        play(world, [*commands])
        return world.state_key()

    desk = "go to desk 1"
    looked = ("look", "inventory", "go to desk 2", "examine desk 2", "examine apple 2")
    assert state(desk) == state(*looked, desk)
    moved = ("take mug 1 from desk 2", "move mug 1 to desk 1")  # the goal is about apples
    assert state(desk, *moved) == state(desk) != state(desk, moved[0])
    cooled = (
        "take apple 2 from desk 1",
        "go to fridge 1",
        "cool apple 2 with fridge 1",
        desk,
        "move apple 2 to desk 1",
    )
    assert state(desk, *cooled) != state(desk)  # which cannot be seen
    opened = ("go to fridge 1", "open fridge 1", desk)
    assert state(*opened) != state(desk)
    assert state(*opened[:2], "close fridge 1", desk) == state(desk)


def test_admissible_commands_at_a_shared_location():
    world = World(small_game())
    world.reset()
    world.step("go to desk 2")
    here = ["examine desk 1", "examine desk 2", "go to fridge 1", "go to microwave 1", "go to sinkbasin 1", "help"]
    taking = ["take apple 2 from desk 1", "take knife 1 from desk 1", "take mug 1 from desk 2"]
    assert world.admissible_commands == [*here, "inventory", "look", *taking, "use desklamp 1"]
    world.step("take knife 1 from desk 1")
    slicing = ["slice apple 2 with knife 1"]  # the knife fits nowhere, so there is no move
    assert world.admissible_commands == [
        *here[:2], "examine knife 1", *here[2:], "inventory", "look", *slicing, "use desklamp 1"
    ]  # fmt: skip
    assert world.step("slice apple 2 with knife 1") == "You sliced the apple 2 with the knife 1."


@pytest.mark.parametrize(
    ("goal", "commands"),
    [
        ("two", "go to desk 1;take apple 2 from desk 1;go to fridge 1;open fridge 1;move apple 2 to fridge 1"),
        ("light", "go to desk 1;use desklamp 1;take apple 2 from desk 1"),
        ("(forall (?o - object) (or (not (objectType ?o MugType)) (holds agent1 ?o)))",
         "go to desk 2;take mug 1 from desk 2"),
        ("(imply (openable Fridge_bar_1) (and (opened Fridge_bar_1)))", "go to fridge 1;open fridge 1"),
        ("(exists (?o - object) (and (isHot ?o) (not (isCool ?o))))",
         "go to desk 2;take apple 2 from desk 1;go to microwave 1;heat apple 2 with microwave 1"),
    ],
)  # fmt: skip
def test_goals_hold_after_the_last_command_only(goal, commands):
    world = World(small_game(goal))
    world.reset()
    won = [world.won]
    for command in commands.split(";"):
        assert world.step(command) != "Nothing happens."
        won.append(world.won)
    assert won == [False] * (len(won) - 1) + [True]


def test_light_goal_ends_when_the_agent_leaves():
    world = World(small_game("light"))
    world.reset()
    play(world, ["go to desk 1", "use desklamp 1", "take apple 2 from desk 1"])
    assert world.won
    world.step("go to fridge 1")
    assert not world.won


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("(openable Fridge_bar_1)", "(fly Fridge_bar_1)", "'fly' with 1 arguments is no fact"),
        ("(openable Fridge_bar_1)", "(openable Oven_bar_1)", "names oven_bar_1"),
        ("loc_bar_0 loc_bar_1", "loc_bar_0 - place loc_bar_1", "unknown type 'place'"),
        ("(:goal ", "(:aim ", "no section :goal"),
        ("(openable Fridge_bar_1)", "openable Fridge_bar_1)", "one closing bracket too many"),
        ("(canContain DeskType MugType)", "(receptacleAtLocation Desk_bar_1 loc_bar_4)", "is at two locations"),
    ],
)
def test_bad_problems_are_refused_by_name(old, new, message):
    game = small_game()
    broken = replace(game, pddl_problem=game.pddl_problem.replace(old, new))
    assert broken != game
    with pytest.raises(DataError, match=message) as caught:
        World(broken)
    assert "small/cool" in str(caught.value)


def test_members_of_a_group_share_the_parse_but_not_the_state():
    first, second = World(small_game()), World(small_game())
    first.reset()
    second.reset()
    first.step("go to desk 1")
    assert first.problem is second.problem
    assert "go to desk 1" in second.admissible_commands
    assert "go to desk 1" not in first.admissible_commands


# --- against the original engine ---


@functools.cache
def original_world() -> OriginalWorld:
    pytest.importorskip("textworld", reason="textworld is not installed: no original to compare with")
    pytest.importorskip("alfworld", reason="alfworld is not installed: no original to compare with")
    return OriginalWorld()


@functools.cache
def official_games() -> list[Game]:
    root = Path(os.environ.get("OPID_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data")) / "alfworld"
    if not (root / "valid_seen.jsonl.xz").is_file():
        pytest.skip("no official games: set OPID_SHARED_DATA to the folder that holds alfworld/valid_seen.jsonl.xz")
    return list(read_pack(root / "valid_seen.jsonl.xz"))


@pytest.mark.parametrize("name", [*TASK_TYPES, "cool", "two", "light"])
def test_identical_to_textworld(name):
    """The planner's solution, then a random walk (see `benchmarks.alfworld_conformance`, which sweeps all games)."""
    if name in GOALS:
        game, walk = small_game(name), 80
    else:
        games = [game for game in official_games() if game.task_type == name]
        game, walk = min(games, key=lambda game: len(game.pddl_problem)), 40
    result = compare(original_world(), game, walk)
    assert result.mismatch == ""
    assert result.plan > 0
    assert result.walk == walk > result.refused > 0


def test_every_official_game_of_a_split_parses_and_is_not_won_at_the_start():
    for game in official_games()[::7]:
        world = World(game)
        world.reset()
        assert not world.won
        assert len(world.admissible_commands) > 3
        assert parse(game).goal is world.problem.goal
