"""The expert: reads every wording, wins from the text alone, recovers from detours, keeps true beliefs."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.alfworld import generator
from envs.alfworld.expert import Request, TextExpert, parse_task
from envs.alfworld.games import TASK_TYPES, Game
from envs.alfworld.generator import GameOptions
from envs.alfworld.world import World
from envs.base import Decision
from opid_core.errors import DataError

WORDINGS = {
    "put a mug in desk": Request("mug", "desk", "", ""),
    "put some egg on fridge": Request("egg", "fridge", "", ""),
    "look at cd under the desklamp": Request("cd", "", "", "desklamp"),
    "examine the book with the desklamp": Request("book", "", "", "desklamp"),
    "put a clean apple in fridge": Request("apple", "fridge", "clean", ""),
    "clean some cloth and put it in drawer": Request("cloth", "drawer", "clean", ""),
    "put a hot potato in garbagecan": Request("potato", "garbagecan", "heat", ""),
    "heat some egg and put it in sinkbasin": Request("egg", "sinkbasin", "heat", ""),
    "put a cool pan in stoveburner": Request("pan", "stoveburner", "cool", ""),
    "cool some bread and put it in countertop": Request("bread", "countertop", "cool", ""),
    "put two pillow in sofa": Request("pillow", "sofa", "", ""),
    "find two pencil and put them in desk": Request("pencil", "desk", "", ""),
}


def play(game: Game, limit: int, noise: float = 0.0, seed: int = 0) -> int | None:
    """Steps to win, or None. A share `noise` of the actions is not the expert's: random ones, a few of which fail."""
    rng = random.Random(seed)
    world = World(game)
    expert = TextExpert(game.task_desc, world.reset())
    for step in range(1, limit + 1):
        action = expert.decide(world.admissible_commands).action
        assert action in world.admissible_commands
        if rng.random() < noise:
            action = rng.choice([*world.admissible_commands, "take ghost 1 from desk 1"])
        expert.observe(action, world.step(action))
        if world.won:
            return step
    return None


def games(size: str, count: int) -> list[Game]:
    options = GameOptions.model_validate({"size": size, "seed": 11})
    return [generator.game(task, options) for task in generator.tasks("train", options, TASK_TYPES)[:count]]


@pytest.mark.parametrize(("text", "request_"), WORDINGS.items())
def test_parses_every_official_wording(text, request_):
    assert parse_task(text) == request_
    assert parse_task(f"Your task is to: {text}.") == request_


def test_refuses_another_wording():
    with pytest.raises(DataError, match="dance with the mug"):
        parse_task("dance with the mug")


@pytest.mark.parametrize(("size", "limit", "least"), [("small", 30, 0.99), ("medium", 30, 0.99), ("full", 50, 0.95)])
def test_wins_generated_games(size, limit, least):
    results = [play(game, limit) for game in games(size, 180)]
    assert sum(steps is not None for steps in results) >= least * len(results)


@pytest.mark.parametrize("size", ["small", "medium"])
def test_wins_when_a_fifth_of_the_actions_is_random(size):
    results = [play(game, 50, noise=0.2, seed=index) for index, game in enumerate(games(size, 180))]
    assert sum(steps is not None for steps in results) >= 0.95 * len(results)


FIRST = (
    "-= Welcome to TextWorld, ALFRED! =-\n\nYou are in the middle of a room. Looking quickly around you, you see "
    "a countertop 1, a fridge 1, a garbagecan 1, and a sinkbasin 1.\n\nYour task is to: put a clean apple in fridge."
)
WALK = ["go to countertop 1", "go to fridge 1", "go to garbagecan 1", "go to sinkbasin 1", "inventory", "look"]


def test_a_whole_episode_decision_by_decision():
    """Fridge first? It is closed and costs two steps: the open countertop promises more per step."""
    expert = TextExpert("put a clean apple in fridge", FIRST)
    assert expert.receptacles == ["countertop 1", "fridge 1", "garbagecan 1", "sinkbasin 1"]
    assert expert.decide(WALK) == Decision("go to countertop 1", "find apple")
    expert.observe(
        "go to countertop 1", "You arrive at countertop 1. On the countertop 1, you see a apple 2, and a mug 1."
    )
    assert (expert.here, expert.visible, expert.searched) == ("countertop 1", ["apple 2", "mug 1"], {"countertop 1"})
    here = ["take apple 2 from countertop 1", "take mug 1 from countertop 1", *WALK[1:]]
    assert expert.decide(here) == Decision("take apple 2 from countertop 1", "take apple")
    expert.observe("take apple 2 from countertop 1", "You pick up the apple 2 from the countertop 1.")
    assert (expert.held, expert.places) == ("apple 2", {"mug 1": "countertop 1"})
    assert expert.decide(WALK[1:]) == Decision("go to sinkbasin 1", "clean apple")
    expert.observe("go to sinkbasin 1", "You arrive at sinkbasin 1. On the sinkbasin 1, you see nothing.")
    sink = ["clean apple 2 with sinkbasin 1", "move apple 2 to sinkbasin 1", *WALK[:3]]
    assert expert.decide(sink) == Decision("clean apple 2 with sinkbasin 1", "clean apple")
    expert.observe("clean apple 2 with sinkbasin 1", "You clean the apple 2 using the sinkbasin 1.")
    assert expert.treated == {"clean": {"apple 2"}, "heat": set(), "cool": set()}
    assert expert.decide(sink) == Decision("go to fridge 1", "put apple in fridge")
    expert.observe("go to fridge 1", "You arrive at fridge 1. The fridge 1 is closed.")
    assert expert.decide(["open fridge 1", *WALK[2:]]) == Decision("open fridge 1", "open fridge")
    expert.observe("open fridge 1", "You open the fridge 1. The fridge 1 is open. In it, you see a egg 1.")
    fridge = ["close fridge 1", "move apple 2 to fridge 1", *WALK[2:]]
    assert expert.decide(fridge) == Decision("move apple 2 to fridge 1", "put apple in fridge")
    expert.observe("move apple 2 to fridge 1", "You move the apple 2 to the fridge 1.")
    assert (expert.held, expert.places["apple 2"]) == (None, "fridge 1")


def test_puts_a_wrong_object_down_first():
    expert = TextExpert("put a clean apple in fridge", FIRST)
    expert.observe(
        "go to countertop 1", "You arrive at countertop 1. On the countertop 1, you see a apple 2, and a mug 1."
    )
    expert.observe("take mug 1 from countertop 1", "You pick up the mug 1 from the countertop 1.")
    decision = expert.decide(["move mug 1 to countertop 1", *WALK[1:]])
    assert decision == Decision("move mug 1 to countertop 1", "put down mug")


def test_looks_into_a_doorless_cabinet_that_shares_the_place_with_another():
    first = "You are in the middle of a room. Looking quickly around you, you see a cabinet 2, and a cabinet 1."
    expert = TextExpert("put some bowl on countertop", first)
    assert expert.decide(["go to cabinet 1", "go to cabinet 2"]) == Decision("go to cabinet 2", "find bowl")
    expert.observe("go to cabinet 2", "You arrive at cabinet 2. On the cabinet 2, you see nothing.")
    both = ["examine cabinet 1", "examine cabinet 2", "inventory", "look"]
    assert expert.decide(both) == Decision("examine cabinet 1", "find bowl")


def test_nothing_happens_changes_no_belief():
    expert = TextExpert("put a clean apple in fridge", FIRST)
    before = dict(vars(expert))
    expert.observe("take apple 1 from fridge 1", "Nothing happens.")
    assert vars(expert) == before


def test_heating_undoes_cooling():
    expert = TextExpert("put a cool apple in fridge", FIRST)
    expert.observe("cool apple 1 with fridge 1", "You cool the apple 1 using the fridge 1.")
    assert expert.treated["cool"] == {"apple 1"}
    expert.observe("heat apple 1 with microwave 1", "You heat the apple 1 using the microwave 1.")
    assert (expert.treated["cool"], expert.treated["heat"]) == (set(), {"apple 1"})


@settings(max_examples=25)
@given(index=st.integers(0, 500), actions=st.lists(st.integers(0, 10_000), max_size=40))
def test_beliefs_stay_true_through_any_walk(index, actions):
    """After any admissible actions, what the expert believes to be here is what `examine` shows, and so is the hand."""
    options = GameOptions(size="small")
    game = generator.game(generator.tasks("train", options, TASK_TYPES)[index], options)
    world = World(game)
    expert = TextExpert(game.task_desc, world.reset())
    for number in actions:
        action = world.admissible_commands[number % len(world.admissible_commands)]
        expert.observe(action, world.step(action))
    expected = f"You are carrying: a {expert.held}." if expert.held else "You are not carrying anything."
    assert world.step("inventory") == expected
    if expert.here is not None and expert.here in expert.searched:
        believed = sorted(expert.visible)
        expert.observe("examine", world.step(f"examine {expert.here}"))
        assert sorted(expert.visible) == believed
