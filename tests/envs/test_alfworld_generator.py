"""The game generator: same bytes for the same seed, balanced splits, solvable games in the official form."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections import Counter

import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.alfworld import generator
from envs.alfworld.expert import TextExpert
from envs.alfworld.games import TASK_TYPES
from envs.alfworld.generator import GameOptions
from envs.alfworld.rooms import OBJECTS, RECEPTACLES
from envs.alfworld.world import World
from opid_core.errors import ConfigError
from tests.envs.test_alfworld_world import original_world

SMALL = GameOptions(size="small")


def make(split: str, count: int, options: GameOptions):
    return [generator.game(task, options) for task in generator.tasks(split, options, TASK_TYPES)[:count]]


def goal_kinds(game) -> tuple[str, str]:
    """The goal's (object kind, destination kind) as the problem's formula names them."""
    formula = game.pddl_problem[game.pddl_problem.index("(:goal") :]
    types = re.findall(r"objectType \?\w+ (\w+)Type", formula)
    if game.task_type == "look_at_obj_in_light":
        return types[1], types[0]
    return types[0], re.findall(r"receptacleType \?r (\w+)Type", formula)[0]


def test_same_seed_makes_the_same_games():
    assert make("train", 24, SMALL) == make("train", 24, SMALL)


def test_a_game_does_not_depend_on_the_games_made_before_it():
    tasks = generator.tasks("train", SMALL, TASK_TYPES)[:12]
    backwards = [generator.game(task, SMALL) for task in reversed(tasks)]
    assert backwards[::-1] == [generator.game(task, SMALL) for task in tasks]


def test_known_bytes():
    """A change of these bytes changes every generated game: it must be meant, and noted for the users."""
    games = make("train", 6, SMALL)
    assert [game.task_desc for game in games] == [
        "put a fork in sinkbasin",
        "look at tissuebox under the desklamp",
        "put a clean mug in diningtable",
        "heat some apple and put it in sidetable",
        "put a cool egg in sinkbasin",
        "find two mug and put them in microwave",
    ]
    assert hashlib.sha256("".join(game.pddl_problem for game in games).encode()).hexdigest() == (
        "a01e436430d10085a423cb0a2eb6c779fb892b98e25b2d1c30a4cf52c4c44065"
    )


def test_other_seeds_splits_and_indices_make_other_games():
    other_seed = GameOptions(size="small", seed=1)
    games = make("train", 60, SMALL) + make("train", 60, other_seed) + make("valid_seen", 60, SMALL)
    assert len({game.pddl_problem.split("(:domain")[1] for game in games}) == 180


def test_every_prefix_of_the_task_list_is_balanced():
    types = ("pick_two_obj_and_place", "look_at_obj_in_light", "pick_heat_then_place_in_recep")
    tasks = generator.tasks("train", GameOptions(train=100), types)
    assert [task.task_id for task in tasks[:2]] == ["train/000000", "train/000001"]
    assert len(tasks) == 100
    for length in range(1, 100):
        counts = Counter(task.task_type for task in tasks[:length])
        assert max(counts.values()) - min(counts[name] for name in types) <= 1


def test_valid_unseen_holds_goals_that_training_never_has():
    training = {goal_kinds(game) for split in ("train", "valid_seen") for game in make(split, 140, SMALL)}
    tasks = generator.tasks("valid_unseen", SMALL, TASK_TYPES)[:120]
    held_out = [goal_kinds(generator.game(task, SMALL)) for task in tasks if task.payload["held_out"]]
    assert len(held_out) == 60
    assert training.isdisjoint(held_out)


@pytest.mark.parametrize("task_type", TASK_TYPES)
@pytest.mark.parametrize("seed", [0, 7])
def test_goals_are_divided_without_rest(task_type, seed):
    seen, unseen = (
        {(goal.target, goal.destination) for goal in generator.goals(task_type, held_out, seed)}
        for held_out in (False, True)
    )
    assert seen
    assert unseen
    assert seen.isdisjoint(unseen)
    assert 0.1 < len(unseen) / len(seen | unseen) < 0.4


@pytest.mark.parametrize(
    ("size", "receptacles", "objects"),
    [("small", (4, 5), (1, 14)), ("medium", (8, 12), (5, 24)), ("full", (6, 45), (9, 66))],
)
def test_sizes(size, receptacles, objects):
    for game in make("train", 30, GameOptions(size=size)):
        facts = game.pddl_problem[: game.pddl_problem.index("(:goal")]
        assert receptacles[0] <= facts.count("(receptacleType ") <= receptacles[1]
        assert objects[0] <= facts.count("(inReceptacle ") <= objects[1]


@settings(max_examples=30)
@given(
    seed=st.integers(0, 2**63),
    index=st.integers(0, 99),
    split=st.sampled_from(generator.SPLITS),
    size=st.sampled_from(["small", "medium", "full"]),
)
def test_any_game_starts_unsolved_and_its_ids_are_in_place(seed, index, split, size):
    options = GameOptions(seed=seed, size=size)
    game = generator.game(generator.tasks(split, options, TASK_TYPES)[index], options)
    world = World(game)
    world.reset()
    assert not world.won
    target, destination = goal_kinds(game)
    assert target.lower() in game.task_desc.split()
    assert destination.lower() in game.task_desc.split()
    facts = game.pddl_problem[game.pddl_problem.index("(:init") : game.pddl_problem.index("(:goal")]
    placed = re.findall(r"\(inReceptacle (\S+) (\S+)\)", facts)
    assert len({name for name, _ in placed}) == len(placed)
    locations = dict(re.findall(r"\(receptacleAtLocation (\S+) (\S+)\)", facts))
    standing = dict(re.findall(r"\(objectAtLocation (\S+) (\S+)\)", facts))
    assert all(standing[name] == locations[place] for name, place in placed)


def test_rooms_vary():
    """300 small games: every room kind's receptacles occur, objects lie in many places, goal objects number 1 to 3."""
    games = make("train", 300, SMALL)
    worlds = [World(game) for game in games]
    rooms = {tuple(sorted(re.findall(r"an? ([a-z]+ \d+)", world.reset().split("Your task")[0]))) for world in worlds}
    assert len(rooms) > 250
    assert len({goal_kinds(game) for game in games}) > 120


def test_tables_agree():
    """Every object kind has a room in which something can contain it."""
    for kind, room in itertools.chain.from_iterable(((k, r) for r in k.rooms) for k in OBJECTS.values()):
        assert set(kind.places) & set(RECEPTACLES[room]), (kind.name, room)


def test_bad_input_is_refused():
    with pytest.raises(ConfigError, match=r"split: .*'test'.*train, valid_seen, valid_unseen"):
        generator.tasks("test", SMALL, TASK_TYPES)
    with pytest.raises(ConfigError, match="task_types"):
        generator.tasks("train", SMALL, ["pick_and_fly"])
    with pytest.raises(ConfigError, match="task_types"):
        generator.tasks("train", SMALL, [])
    with pytest.raises(pydantic.ValidationError, match="size"):
        GameOptions.model_validate({"size": "huge"})
    with pytest.raises(pydantic.ValidationError, match="less than or equal to 100000"):
        GameOptions.model_validate({"train": 100_001})


@pytest.mark.parametrize("task_type", TASK_TYPES)
def test_textworld_plays_a_generated_game(task_type):
    """The original engine loads the game, shows the same names, and is won by the expert's own actions."""
    game = generator.game(generator.tasks("valid_unseen", SMALL, [task_type])[1], SMALL)
    original, world = original_world(), World(game)
    observation = original.reset(game)
    assert world.reset() == observation
    expert = TextExpert(game.task_desc, observation)
    for _ in range(30):
        action = expert.decide(original.admissible_commands).action
        observation = original.step(action)
        assert world.step(action) == observation
        expert.observe(action, observation)
        if original.won:
            break
    assert original.won
    assert world.won


def test_a_hundred_thousand_tasks_are_listed_without_making_them():
    options = GameOptions(size="small", train=100_000)
    tasks = generator.tasks("train", options, TASK_TYPES)
    assert len(tasks) == 100_000
    assert tasks[-1] == tasks[99_999] == tasks[99_998:][1]
    assert (tasks[-1].task_id, tasks[-1].task_type) == ("train/099999", TASK_TYPES[99_999 % 6])
    assert generator.game(tasks[-1], options).game_id == "train/099999"
    with pytest.raises(IndexError):
        tasks[100_000]
