"""Seeded games of the ALFRED domain: random rooms of four kinds and the six task types of ALFWorld.

A game depends on the options' seed and size, the split, the index and the task type alone, so any process makes the
same bytes. The goal combinations (object kind, destination kind) are divided once a seed: at least a fifth of those of
every task type is held out from `train` and `valid_seen`. Every second round over the task types of `valid_unseen`
draws its goals from the held-out ones (`Task.payload["held_out"]`), the others from the combinations of training.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, overload

from pydantic import Field

from envs.alfworld import problem
from envs.alfworld.games import TASK_TYPES, Game
from envs.alfworld.planner import solve
from envs.alfworld.rooms import FIXTURES, LAMP, LAMP_PLACES, OBJECT_COUNTS, OBJECTS, RECEPTACLES
from envs.base import Task, check_split
from opid_core.errors import ConfigError
from opid_core.sections import Section

SPLITS = ("train", "valid_seen", "valid_unseen")

_PROPERTIES = {
    "pick_clean_then_place_in_recep": "clean",
    "pick_heat_then_place_in_recep": "heat",
    "pick_cool_then_place_in_recep": "cool",
}
_TOOLS = {"clean": "SinkBasin", "heat": "Microwave", "cool": "Fridge"}
_WORDINGS = {
    "pick_and_place_simple": ("put a {obj} in {recep}", "put some {obj} on {recep}"),
    "look_at_obj_in_light": ("look at {obj} under the {recep}", "examine the {obj} with the {recep}"),
    "pick_clean_then_place_in_recep": ("put a clean {obj} in {recep}", "clean some {obj} and put it in {recep}"),
    "pick_heat_then_place_in_recep": ("put a hot {obj} in {recep}", "heat some {obj} and put it in {recep}"),
    "pick_cool_then_place_in_recep": ("put a cool {obj} in {recep}", "cool some {obj} and put it in {recep}"),
    "pick_two_obj_and_place": ("put two {obj} in {recep}", "find two {obj} and put them in {recep}"),
}
_HELD_OUT_SHARE = 0.2


class GameOptions(Section):
    """The made games. The same options make the same games on every machine."""

    seed: int = Field(default=0, ge=0)
    """Seed of all games."""
    size: Literal["small", "medium", "full"] = "full"
    """Rooms of 4 to 5 receptacles, of 8 to 12, or as large as those of the official games."""
    train: int = Field(default=3553, ge=1, le=100_000)
    """Games of the training split."""
    valid_seen: int = Field(default=140, ge=1, le=100_000)
    """Games of the validation split whose goal combinations also occur in training."""
    valid_unseen: int = Field(default=134, ge=1, le=100_000)
    """Games of the validation split half of whose goal combinations never occur in training."""


@dataclass(frozen=True)
class GoalCombination:
    """An object kind, where it goes (a lamp for look_at_obj_in_light), and a kind of room that has both."""

    target: str
    destination: str
    room: str


@dataclass
class Room:
    """A room under construction: names are unique ids such as ("Apple", 2); `places` says what lies where."""

    receptacles: list[tuple[str, int]] = field(default_factory=list)
    places: dict[tuple[str, int], tuple[str, int]] = field(default_factory=dict)

    def add_receptacle(self, kind: str) -> None:
        self.receptacles.append((kind, sum(k == kind for k, _ in self.receptacles)))

    def add_object(self, kind: str, receptacle: tuple[str, int]) -> None:
        self.places[kind, sum(k == kind for k, _ in self.places)] = receptacle


def tasks(split: str, options: GameOptions, task_types: Sequence[str]) -> Sequence[Task]:
    """The task list of `split`: task types take turns, so every prefix is balanced.

    Raises ConfigError for an unknown split or task type.
    """
    check_split(split, SPLITS)
    unknown = [name for name in task_types if name not in TASK_TYPES]
    if unknown or not task_types:
        raise ConfigError(f"task_types: got {list(task_types)!r}; choose from: {', '.join(TASK_TYPES)}")
    return _Tasks(split, getattr(options, split), tuple(task_types))


class _Tasks(Sequence[Task]):
    """The tasks of a split, each made when it is asked for: a list of 100,000 costs nothing."""

    def __init__(self, split: str, count: int, task_types: tuple[str, ...]) -> None:
        self._split, self._count, self._task_types = split, count, task_types

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Task: ...

    @overload
    def __getitem__(self, index: slice) -> list[Task]: ...

    def __getitem__(self, index: int | slice) -> Task | list[Task]:
        position = range(self._count)[index]
        return self._task(position) if isinstance(position, int) else [self._task(one) for one in position]

    def _task(self, index: int) -> Task:
        split, types = self._split, len(self._task_types)
        held_out = split == "valid_unseen" and index // types % 2 == 0
        payload = {"split": split, "index": index, "held_out": held_out}
        return Task(f"{split}/{index:06d}", self._task_types[index % types], payload)


def game(task: Task, options: GameOptions) -> Game:
    """The game of `task`. Raises DataError where the planner does not win it (never expected)."""
    split, index, held_out = (task.payload[key] for key in ("split", "index", "held_out"))
    rng = random.Random(f"alfworld/{options.seed}/{options.size}/{split}/{index}/{task.task_type}")
    goal = rng.choice(goals(task.task_type, held_out, options.seed))
    room = _make_room(goal, task.task_type, options.size, rng)
    text = problem.write(
        f"{split}_{index:06d}",
        room.receptacles,
        room.places,
        problem.goal(task.task_type, goal.target, goal.destination),
        rng,
    )
    wording = rng.choice(_WORDINGS[task.task_type])
    generated = Game(
        game_id=task.task_id,
        task_type=task.task_type,
        task_desc=wording.format(obj=goal.target.lower(), recep=goal.destination.lower()),
        pddl_problem=text,
    )
    solve(generated)
    return generated


@functools.lru_cache(maxsize=64)
def goals(task_type: str, held_out: bool, seed: int) -> tuple[GoalCombination, ...]:
    """The goals that games of `task_type` are drawn from: the held-out combinations, or all the others."""
    hidden = _held_out_combinations(seed)
    return tuple(goal for goal in _all_goals(task_type) if ((goal.target, goal.destination) in hidden) == held_out)


@functools.lru_cache(maxsize=8)
def _held_out_combinations(seed: int) -> frozenset[tuple[str, str]]:
    """A seeded fifth of the (object kind, destination kind) combinations of every task type."""
    rng = random.Random(f"alfworld/{seed}/held-out")
    hidden: set[tuple[str, str]] = set()
    for task_type in TASK_TYPES:
        pairs = sorted({(goal.target, goal.destination) for goal in _all_goals(task_type)})
        missing = max(1, round(_HELD_OUT_SHARE * len(pairs))) - len(hidden.intersection(pairs))
        hidden.update(rng.sample([pair for pair in pairs if pair not in hidden], max(0, missing)))
    return frozenset(hidden)


@functools.cache
def _all_goals(task_type: str) -> tuple[GoalCombination, ...]:
    """Every goal that makes sense: the object may lie elsewhere in the room than where it has to go."""
    wanted = _PROPERTIES.get(task_type)
    goals = []
    for kind in OBJECTS.values():
        if wanted is not None and wanted not in kind.properties:
            continue
        for room in kind.rooms:
            present = RECEPTACLES[room]
            receptacles = [receptacle for receptacle in kind.places if receptacle in present]
            if task_type == "look_at_obj_in_light":
                destinations = [LAMP] if room in LAMP_PLACES and receptacles else []
            elif wanted is not None:
                tool = _TOOLS[wanted]
                destinations = [receptacle for receptacle in receptacles if receptacle != tool and tool in present]
            else:
                destinations = receptacles if len(receptacles) > 1 else []
            goals += [GoalCombination(kind.name, destination, room) for destination in destinations]
    return tuple(goals)


def _make_room(goal: GoalCombination, task_type: str, size: str, rng: random.Random) -> Room:
    """Receptacles and objects in which `goal` can be reached and does not hold yet."""
    room = Room()
    for kind in _receptacle_kinds(goal, task_type, size, rng):
        room.add_receptacle(kind)
    _place_targets(room, goal, task_type, rng)
    if task_type == "look_at_obj_in_light":
        lamp_places = [r for r in room.receptacles if r[0] in LAMP_PLACES[goal.room]]
        room.add_object(LAMP, rng.choice(lamp_places))
    fewest, most = {"small": (4, 8), "medium": (9, 18), "full": OBJECT_COUNTS[goal.room]}[size]
    kinds = [kind for kind in OBJECTS.values() if goal.room in kind.rooms and kind.name != goal.target]
    wanted = rng.randint(fewest, most)
    while kinds and len(room.places) < wanted:
        kind = rng.choice(kinds)
        kinds.remove(kind)
        options = _possible_places(kind.name, room.receptacles)
        for _ in range(rng.choice((1, 1, 2, 3)) if options else 0):
            room.add_object(kind.name, _draw_place(kind.name, options, rng))
    if size != "small":
        for kind, kinds_of_places in FIXTURES[goal.room].items():
            options = [r for r in room.receptacles if r[0] in kinds_of_places]
            if options and rng.random() < 0.5:
                room.add_object(kind, rng.choice(options))
    return room


def _receptacle_kinds(goal: GoalCombination, task_type: str, size: str, rng: random.Random) -> list[str]:
    """The kinds of the room's receptacles, one entry a receptacle, with what the goal needs among them."""
    available = RECEPTACLES[goal.room]
    sources = [kind for kind in OBJECTS[goal.target].places if kind in available]
    needed = []
    if task_type == "look_at_obj_in_light":
        needed.append(rng.choice([kind for kind in LAMP_PLACES[goal.room] if kind in available]))
    else:
        needed.append(goal.destination)
        sources = [kind for kind in sources if kind != goal.destination]
    if task_type in _PROPERTIES:
        needed.append(_TOOLS[_PROPERTIES[task_type]])
        sources = sources or [goal.destination]
    if not any(kind in needed for kind in sources) or rng.random() < 0.8:
        needed.append(rng.choice(sources))
    needed = list(dict.fromkeys(needed))
    if size == "full":
        kinds = []
        for kind, (share, fewest, most) in available.items():
            if kind in needed or rng.random() < share:
                kinds += [kind] * rng.randint(fewest, most)
        return kinds
    fewest, most = (4, 5) if size == "small" else (8, 12)
    kinds, names = list(needed), list(available)
    weights = [available[kind][0] * min(available[kind][2], 4) ** 0.5 for kind in names]
    room_for = rng.randint(max(fewest, len(needed)), most)
    while len(kinds) < room_for:
        kind = rng.choices(names, weights)[0]
        if kinds.count(kind) < available[kind][2]:
            kinds.append(kind)
    return kinds


def _place_targets(room: Room, goal: GoalCombination, task_type: str, rng: random.Random) -> None:
    """Put the objects of the goal kind somewhere: enough of them, and not where they would already be done."""
    anywhere = _possible_places(goal.target, room.receptacles)
    elsewhere = [r for r in anywhere if r[0] != goal.destination]
    if task_type in _PROPERTIES or task_type == "look_at_obj_in_light":
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            room.add_object(goal.target, _draw_place(goal.target, anywhere, rng))
    elif task_type == "pick_two_obj_and_place":
        if rng.random() < 0.15:
            room.add_object(goal.target, rng.choice([r for r in anywhere if r[0] == goal.destination]))
        else:
            room.add_object(goal.target, _draw_place(goal.target, elsewhere, rng))
        for _ in range(rng.choice((1, 1, 2))):
            room.add_object(goal.target, _draw_place(goal.target, elsewhere, rng))
    else:
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            room.add_object(goal.target, _draw_place(goal.target, elsewhere, rng))


def _possible_places(kind: str, receptacles: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
    return [r for r in receptacles if r[0] in OBJECTS[kind].places]


def _draw_place(kind: str, options: Sequence[tuple[str, int]], rng: random.Random) -> tuple[str, int]:
    """Half of the time anywhere, else where such objects usually lie."""
    if rng.random() < 0.5:
        return rng.choice(options)
    kinds = [receptacle[0] for receptacle in options]
    return rng.choices(options, [(1 + OBJECTS[kind].places[k]) / kinds.count(k) for k in kinds])[0]
