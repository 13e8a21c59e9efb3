"""A native simulator of ALFWorld's text games, the same byte for byte as textworld 1.7.0 with alfworld 0.4.2.

The domain is fixed: its actions are the methods below, its grammar their texts. What looks odd is theirs, and kept: an
object can be examined only while it is held (the domain's other case names a type that does not exist); a thing lies
"next to" a receptacle only after it was taken from it and put elsewhere at the same location; the first look from the
middle of a room lists all receptacles, later ones nothing; a lamp that was switched on once is called on ever after.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from envs.alfworld.games import TASK_LINE, Game
from envs.alfworld.pddl import parse

BANNER = "-= Welcome to TextWorld, ALFRED! =-\n\n"
NOTHING_HAPPENS = "Nothing happens."
HELP = """\
Available commands:
  look:                             look around your current location
  inventory:                        check your current inventory
  go to (receptacle):               move to a receptacle
  open (receptacle):                open a receptacle
  close (receptacle):               close a receptacle
  take (object) from (receptacle):  take an object from a receptacle
  move (object) to (receptacle):  place an object in or on a receptacle
  examine (something):              examine a receptacle or an object
  use (object):                     use an object
  heat (object) with (receptacle):  heat an object using a receptacle
  clean (object) with (receptacle): clean an object using a receptacle
  cool (object) with (receptacle):  cool an object using a receptacle
  slice (object) with (object):     slice an object using a sharp object
"""

TREATMENTS = (
    ("clean", "cleanable", "sinkbasintype", "isclean", ""),
    ("heat", "heatable", "microwavetype", "ishot", "iscool"),
    ("cool", "coolable", "fridgetype", "iscool", "ishot"),
)
"""Verb, what an object must be, the receptacle's type, what the object becomes and what it is no longer."""

_CONDITIONS = (
    (("isclean", "ishot", "issliced"), "This is a hot and clean sliced {}."),
    (("isclean", "iscool", "issliced"), "This is a cool and clean sliced {}."),
    (("isclean", "issliced"), "This is a clean sliced {}."),
    (("ishot", "issliced"), "This is a hot sliced {}."),
    (("iscool", "issliced"), "This is a cool sliced {}."),
    (("isclean", "ishot"), "This is a hot and clean {}."),
    (("isclean", "iscool"), "This is a cool and clean {}."),
    (("ishot",), "This is a hot {}."),
    (("isclean",), "This is a clean {}."),
    (("iscool",), "This is a cold {}."),
    (("toggleable", "istoggled"), "This {} is on."),
    (("sliceable", "issliced"), "This is a sliced {}."),
)
"""What `examine` says of an object: the first line all of whose predicates hold."""

_CONDITIONS_OF_THINGS = ("inreceptacle", "isclean", "ishot", "iscool", "issliced", "istoggled")

_Action = tuple[Callable[..., str], tuple[str, ...]]


class World:
    """One episode of a game. `reset` must come first. Raises DataError for a game that cannot be used."""

    def __init__(self, game: Game) -> None:
        self.game = game
        self.problem = parse(game)
        self.admissible_commands: list[str] = []
        """Sorted, as textworld gives them ('help' is among them)."""
        self.won = False
        """Whether the goal holds now; an episode is done when it is won."""

    def reset(self) -> str:
        """Start from the game's initial state; the first observation, with textworld's banner and the task sentence."""
        self.facts = self.problem.initial_facts()
        self._removed_from: set[tuple[str, str]] = set()
        ((_, self._location),) = self.facts["atlocation"]
        self._observe_state()
        return f"{BANNER}{self._look(first=True)}\n\n{TASK_LINE}{self.game.task_desc}."

    def step(self, command: str) -> str:
        """Do `command` and return the observation; what is not admissible changes nothing."""
        action = self._actions.get(command.strip())
        if action is None:
            return NOTHING_HAPPENS
        method, arguments = action
        feedback = method(*arguments)
        self._observe_state()
        return feedback

    def state_key(self) -> str:
        """Equal in two states of a game from which the same commands win it: where the player is, what is held, which
        receptacles are open, and what has become of the things that the goal is about."""
        things = self.problem.goal_things
        key = [sorted(self.facts[predicate]) for predicate in ("atlocation", "holds", "opened")]
        key += [sorted(f for f in self.facts[p] if f[0] in things) for p in _CONDITIONS_OF_THINGS]
        return hashlib.sha256(repr(key).encode()).hexdigest()[:16]

    def _observe_state(self) -> None:
        self._actions = self._admissible_actions()
        self.admissible_commands = sorted(self._actions)
        self.won = self.problem.goal(self.facts)

    def _admissible_actions(self) -> dict[str, _Action]:
        problem, facts, names = self.problem, self.facts, self.problem.names
        static, here = problem.facts, self.problem.receptacles_at.get(self._location, ())
        held = [o for _, o in facts["holds"]]
        actions: dict[str, _Action] = {
            "look": (self._look, ()),
            "inventory": (self._inventory, ()),
            "help": (_help, ()),
        }
        for receptacle in problem.location_of:
            if receptacle not in here:
                actions[f"go to {names[receptacle]}"] = (self._go_to, (receptacle,))
        for o in held:
            actions[f"examine {names[o]}"] = (self._examine_object, (o,))
        for receptacle in here:
            name = names[receptacle]
            openable, opened = (receptacle,) in static["openable"], (receptacle,) in facts["opened"]
            actions[f"examine {name}"] = (self._examine_receptacle, (receptacle,))
            if openable:
                verb, method = ("close", self._close) if opened else ("open", self._open)
                actions[f"{verb} {name}"] = (method, (receptacle,))
            inside = self._inside(receptacle)
            for o in inside:
                if (o,) in static["toggleable"]:
                    actions[f"use {names[o]}"] = (self._use, (o,))
            if not openable or opened:
                for o in inside:
                    if (o,) in static["pickupable"] and not facts["holdsany"]:
                        actions[f"take {names[o]} from {name}"] = (self._take, (o, receptacle))
                for o in held:
                    if self._can_contain(receptacle, o):
                        actions[f"move {names[o]} to {name}"] = (self._move, (o, receptacle))
            for o in held:
                for treatment in TREATMENTS:
                    verb, able, receptacle_type, _, _ = treatment
                    if (o,) in static[able] and (receptacle, receptacle_type) in static["receptacletype"]:
                        actions[f"{verb} {names[o]} with {name}"] = (self._treat, (o, receptacle, *treatment))
        for knife in held:
            if any((knife, kind) in static["objecttype"] for kind in ("knifetype", "butterknifetype")):
                for o, location in facts["objectatlocation"]:
                    if location == self._location and (o,) in static["sliceable"]:
                        actions[f"slice {names[o]} with {names[knife]}"] = (self._slice, (o, knife))
        return actions

    def _can_contain(self, receptacle: str, o: str) -> bool:
        static = self.problem.facts
        receptacle_types = [kind for r, kind in static["receptacletype"] if r == receptacle]
        object_types = [kind for other, kind in static["objecttype"] if other == o]
        return any((r, kind) in static["cancontain"] for r in receptacle_types for kind in object_types)

    def _inside(self, receptacle: str) -> list[str]:
        return sorted(o for o, r in self.facts["inreceptacle"] if r == receptacle)

    def _listed(self, ids: list[str]) -> str:
        return _list([f"a {self.problem.names[i]}" for i in ids])

    def _look(self, first: bool = False) -> str:
        here = self.problem.receptacles_at.get(self._location, ())
        if here:
            facing = _list([self.problem.names[receptacle] for receptacle in here])
            at_hand = sorted(o for o, location in self.facts["objectatlocation"] if location == self._location)
            next_to = [o for o in at_hand for receptacle in here if (o, receptacle) in self._removed_from]
            text = f"You are facing the {facing}. Next to it, you see {self._listed(next_to)}."
        else:
            # the grammar binds the location on every look but the first, and then no receptacle matches
            seen = list(self.problem.location_of) if first else []
            text = f"You are in the middle of a room. Looking quickly around you, you see {self._listed(seen)}."
        self._check(self._location if not first else None)
        return text

    def _inventory(self) -> str:
        self._check(self.problem.agent)
        if not self.facts["holdsany"]:
            return "You are not carrying anything."
        return f"You are carrying: {self._listed(sorted(o for _, o in self.facts['holds']))}."

    def _go_to(self, receptacle: str) -> str:
        self._location = self.problem.location_of[receptacle]
        self.facts["atlocation"] = {(self.problem.agent, self._location)}
        return f"You arrive at {self.problem.names[receptacle]}. {self._describe(receptacle)}"

    def _open(self, receptacle: str) -> str:
        self.facts["opened"].add((receptacle,))
        self._check(receptacle)
        return f"You open the {self.problem.names[receptacle]}. {self._describe(receptacle)}"

    def _close(self, receptacle: str) -> str:
        self.facts["opened"].discard((receptacle,))
        return f"You close the {self.problem.names[receptacle]}."

    def _take(self, o: str, receptacle: str) -> str:
        self.facts["inreceptacle"].discard((o, receptacle))
        self._removed_from.add((o, receptacle))
        self.facts["holds"].add((self.problem.agent, o))
        self.facts["holdsany"].add((self.problem.agent,))
        self.facts["objectatlocation"].discard((o, self._location))
        return f"You pick up the {self.problem.names[o]} from the {self.problem.names[receptacle]}."

    def _move(self, o: str, receptacle: str) -> str:
        self.facts["inreceptacle"].add((o, receptacle))
        self._removed_from.discard((o, receptacle))
        self.facts["holds"].discard((self.problem.agent, o))
        self.facts["holdsany"].discard((self.problem.agent,))
        self.facts["objectatlocation"].add((o, self._location))
        return f"You move the {self.problem.names[o]} to the {self.problem.names[receptacle]}."

    def _treat(self, o: str, receptacle: str, verb: str, _able: str, _type: str, becomes: str, ends: str) -> str:
        self.facts[becomes].add((o,))
        if ends:
            self.facts[ends].discard((o,))
        return f"You {verb} the {self.problem.names[o]} using the {self.problem.names[receptacle]}."

    def _use(self, o: str) -> str:
        self.facts["ison"].symmetric_difference_update({(o,)})
        self.facts["istoggled"].add((o,))
        return f"You turn on the {self.problem.names[o]}."

    def _slice(self, o: str, knife: str) -> str:
        self.facts["issliced"].add((o,))
        return f"You sliced the {self.problem.names[o]} with the {self.problem.names[knife]}."

    def _examine_receptacle(self, receptacle: str) -> str:
        self._check(receptacle)
        return self._describe(receptacle)

    def _describe(self, receptacle: str) -> str:
        name = self.problem.names[receptacle]
        if (receptacle,) not in self.problem.facts["openable"]:
            return f"On the {name}, you see {self._listed(self._inside(receptacle))}."
        if (receptacle,) in self.facts["opened"]:
            return f"The {name} is open. In it, you see {self._listed(self._inside(receptacle))}."
        return f"The {name} is closed."

    def _examine_object(self, o: str) -> str:
        self._check(o)
        static, name = self.problem.facts, self.problem.names[o]
        if (o,) in static["isreceptacleobject"]:
            inner = sorted(i for i, outer in static["inreceptacleobject"] if outer == o and i != o)
            return f"This is a normal {name}. In it, you see {self._listed(inner)}."
        for predicates, text in _CONDITIONS:
            if all((o,) in (self.facts if p in self.facts else static)[p] for p in predicates):
                return text.format(name)
        return f"There's nothing special about {name}."

    def _check(self, thing: str | None) -> None:
        if thing is not None:
            self.facts["checked"].add((thing,))


def _help() -> str:
    return HELP


def _list(texts: list[str]) -> str:
    if len(texts) < 2:
        return texts[0] if texts else "nothing"
    return f"{', '.join(texts[:-1])}, and {texts[-1]}"
