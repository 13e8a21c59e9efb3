"""A planner over the native facts: commands that win a game from its start, with full knowledge of the room.

Of the ways to make the goal true (which object goes to which receptacle, under which lamp) it tries the one that takes
the fewest new facts first, and for each object lines up what has to be done: fetch, treat, deliver or keep.
"""

from __future__ import annotations

from collections.abc import Iterator

from envs.alfworld.games import Game
from envs.alfworld.pddl import Way
from envs.alfworld.world import TREATMENTS, World
from opid_core.errors import DataError

_TREATMENTS = {becomes: (verb, receptacle_type) for verb, _, receptacle_type, becomes, _ in TREATMENTS}
_ORDER = ("inreceptacle", "holds", "istoggled", "atlocation")
"""Deliveries need the hand that holds something afterwards; where to stand comes last."""


def solve(game: Game) -> list[str]:
    """The commands of a solution, to be played from `World.reset` on.

    Raises DataError where the planner finds none: it knows the goals of the six task types, not all of PDDL.
    """
    world = World(game)
    world.reset()
    ways = sorted(world.problem.ways(), key=lambda way: sum(not _holds(world, fact) for fact in way))
    for way in ways:
        world.reset()
        plan: list[str] = []
        for command in _commands(world, way):
            if command not in world.admissible_commands:
                break  # out of reach: a thing that cannot be taken, or has no place here
            world.step(command)
            plan.append(command)
            if world.won:
                return plan
    raise DataError(f"game {game.game_id}: the planner finds no solution")


def _holds(world: World, fact: tuple[str, ...]) -> bool:
    predicate, *arguments = fact
    return tuple(arguments) in world.facts[predicate]


def _commands(world: World, way: Way) -> Iterator[str]:
    """What to do next for `way`; each command is done in `world` before the next is asked for."""
    wanted = [fact for fact in way if not _holds(world, fact)]
    treatments = [fact for fact in wanted if fact[0] in _TREATMENTS]
    treated = {o for _, o in treatments}
    ordered = [fact for fact in way if fact[0] in _ORDER and (fact in wanted or fact[1] in treated)]
    for predicate, *arguments in sorted(ordered, key=lambda fact: _ORDER.index(fact[0])):
        if predicate == "inreceptacle":
            o, receptacle = arguments
            yield from _fetch(world, o, treatments)
            yield from _approach(world, receptacle)
            yield f"move {world.problem.names[o]} to {world.problem.names[receptacle]}"
        elif predicate == "holds":
            yield from _fetch(world, arguments[1], treatments)
        elif predicate == "istoggled":
            yield from _approach(world, _receptacle_of(world, arguments[0]))
            yield f"use {world.problem.names[arguments[0]]}"
        else:
            receptacle = world.problem.receptacles_at.get(arguments[1], ("",))[0]
            yield from _approach(world, receptacle)


def _fetch(world: World, o: str, treatments: list[tuple[str, ...]]) -> Iterator[str]:
    """Take `o` and treat it as wanted."""
    problem = world.problem
    receptacle = _receptacle_of(world, o)
    if receptacle:
        yield from _approach(world, receptacle)
        yield f"take {problem.names[o]} from {problem.names[receptacle]}"
    for predicate, treated in treatments:
        if treated == o:
            verb, receptacle_type = _TREATMENTS[predicate]
            tools = [r for r, kind in sorted(problem.facts["receptacletype"]) if kind == receptacle_type]
            tool = tools[0] if tools else ""
            yield from _approach(world, tool, opening=False)
            yield f"{verb} {problem.names[o]} with {problem.names.get(tool, '')}"


def _approach(world: World, receptacle: str, opening: bool = True) -> Iterator[str]:
    """Go there unless the agent is there, and open what is closed."""
    name = world.problem.names.get(receptacle, "")
    for command in (f"go to {name}", f"open {name}")[: 1 + opening]:
        if command in world.admissible_commands:
            yield command


def _receptacle_of(world: World, o: str) -> str:
    return next((receptacle for other, receptacle in sorted(world.facts["inreceptacle"]) if other == o), "")
