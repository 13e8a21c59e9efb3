from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.alfworld import generator
from envs.alfworld.games import TASK_TYPES
from envs.alfworld.generator import GameOptions
from envs.alfworld.planner import solve
from envs.alfworld.world import World
from opid_core.errors import DataError
from tests.envs.test_alfworld_world import official_games, small_game


@pytest.mark.parametrize(
    ("goal", "plan"),
    [
        ("cool", "go to desk 1;take apple 2 from desk 1;go to fridge 1;cool apple 2 with fridge 1;open fridge 1;"
                 "move apple 2 to fridge 1"),
        # one of the two apples lies there already
        ("two", "go to desk 1;take apple 2 from desk 1;go to fridge 1;open fridge 1;move apple 2 to fridge 1"),
        ("light", "go to desk 1;take apple 2 from desk 1;use desklamp 1"),
        ("(and (inReceptacle Apple_bar_1 Desk_bar_1) (isClean Apple_bar_1))",
         "go to desk 1;take apple 2 from desk 1;go to sinkbasin 1;clean apple 2 with sinkbasin 1;go to desk 2;"
         "move apple 2 to desk 2"),
        ("(exists (?o - object ?a - agent) (or (and (isHot ?o) (holds ?a ?o) (objectType ?o AppleType))))",
         "go to desk 1;take apple 2 from desk 1;go to microwave 1;heat apple 2 with microwave 1"),
    ],
)  # fmt: skip
def test_plans(goal, plan):
    assert solve(small_game(goal)) == plan.split(";")


@pytest.mark.parametrize(
    ("goal", "message"),
    [
        ("(inReceptacle Knife_bar_1 Fridge_bar_1)", "small/.*: the planner finds no solution"),  # it fits nowhere
        ("(holds agent1 DeskLamp_bar_1)", "no solution"),  # it cannot be taken
        ("(not (opened Fridge_bar_1))", "the planner cannot make goal part 'not' true"),
    ],
)
def test_what_the_planner_cannot_solve_is_an_error(goal, message):
    with pytest.raises(DataError, match=message):
        solve(small_game(goal))


def test_a_tool_that_is_missing():
    game = small_game("cool")
    without = game.pddl_problem.replace("(receptacleType Fridge_bar_1 FridgeType)", "")
    with pytest.raises(DataError, match=r"^game small/cool: .*no solution"):
        solve(replace(game, pddl_problem=without))


def wins(game, plan: list[str]) -> bool:
    """Whether every command of `plan` does something and the last one wins."""
    world = World(game)
    world.reset()
    for command in plan:
        assert not world.won
        assert command in world.admissible_commands
        world.step(command)
    return world.won


@pytest.mark.parametrize("task_type", TASK_TYPES)
def test_official_games_are_solved(task_type):
    games = [game for game in official_games() if game.task_type == task_type]
    assert all(wins(game, solve(game)) for game in games[:3])


@settings(max_examples=40)
@given(seed=st.integers(0, 2**63), index=st.integers(0, 99), size=st.sampled_from(["small", "medium", "full"]))
def test_generated_games_are_solved(seed, index, size):
    options = GameOptions(seed=seed, size=size)
    game = generator.game(generator.tasks("train", options, TASK_TYPES)[index], options)
    plan = solve(game)
    assert wins(game, plan)
    assert len(plan) <= 14  # twice: go, open, take, go, treat, open, move
