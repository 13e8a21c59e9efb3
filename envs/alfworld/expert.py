"""An expert that plays ALFWorld from the text alone: task, observations, admissible actions.

It keeps beliefs (what lies where, what is open, searched, held, cleaned, heated, cooled) and decides afresh from them
at every step, so it recovers from any detour: actions that were not its own, things moved, a wrong object in hand.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from envs.alfworld.rooms import OBJECTS, OPENABLE
from envs.base import Decision
from opid_core.errors import DataError

_TOOL_KINDS = {"clean": "sinkbasin", "heat": "microwave", "cool": "fridge"}
_ADJECTIVES = {"clean": "clean", "hot": "heat", "cool": "cool"}
_OPENABLE_KINDS = frozenset(kind.lower() for kind in OPENABLE)
_PLACES = {
    kind.name.lower(): {place.lower(): share for place, share in kind.places.items()} for kind in OBJECTS.values()
} | {"desklamp": {"desk": 37, "sidetable": 35, "dresser": 19, "shelf": 7, "coffeetable": 2}}

_TASKS = (
    re.compile(r"(?:look at|examine) (?:the |a |an |some )?(?P<target>\w+) (?:under|with) (?:the )?(?P<lamp>\w+)"),
    re.compile(r"(?:find |put )two (?P<target>\w+) (?:and put them )?(?:in|on)(?: the)? (?P<destination>\w+)"),
    re.compile(r"(?P<verb>clean|heat|cool) some (?P<target>\w+) and put it (?:in|on)(?: the)? (?P<destination>\w+)"),
    re.compile(
        r"put (?:a |an |some )?(?P<adjective>clean|hot|cool) (?P<target>\w+) (?:in|on)(?: the)? (?P<destination>\w+)"
    ),
    re.compile(r"put (?:a |an |some )?(?P<target>\w+) (?:in|on)(?: the)? (?P<destination>\w+)"),
)
_NAMES = re.compile(r"\ban? ([a-z]+ \d+)")
_ON = re.compile(r"On the ([a-z]+ \d+), you see ([^.]*)\.")
_OPEN = re.compile(r"The ([a-z]+ \d+) is open\. In it, you see ([^.]*)\.")
_CLOSED = re.compile(r"The ([a-z]+ \d+) is closed\.|You close the ([a-z]+ \d+)\.")
_ARRIVE = re.compile(r"You arrive at ([a-z]+ \d+)\.")
_TAKE = re.compile(r"You pick up the ([a-z]+ \d+) from the ([a-z]+ \d+)\.")
_PUT = re.compile(r"You move the ([a-z]+ \d+) to the ([a-z]+ \d+)\.")
_TREAT = re.compile(r"You (clean|heat|cool) the ([a-z]+ \d+) using")
_CARRYING = re.compile(r"You are carrying: an? ([a-z]+ \d+)\.")


@dataclass(frozen=True)
class Request:
    """What the task text asks for. Kinds are lower-case, as the player reads them; "" where the task has none."""

    target: str
    destination: str
    treatment: str
    lamp: str


def parse_task(task_text: str) -> Request:
    """Read a task in any official wording, with or without "Your task is to:". Raises DataError for another wording."""
    text = task_text.rsplit("Your task is to:", 1)[-1].strip().rstrip(".").lower()
    for pattern in _TASKS:
        match = pattern.fullmatch(text)
        if match:
            groups = match.groupdict()
            return Request(
                target=groups["target"],
                destination=groups.get("destination") or "",
                treatment=groups.get("verb") or _ADJECTIVES.get(groups.get("adjective") or "", ""),
                lamp=groups.get("lamp") or "",
            )
    raise DataError(f"task text {task_text!r}: not one of the wordings of ALFWorld's six task types")


def kind_of(name: str) -> str:
    """The kind of a numbered name: "apple" of "apple 1"."""
    return name.rsplit(" ", 1)[0]


class TextExpert:
    """Plays one episode; its public fields are its beliefs."""

    def __init__(self, task_text: str, first_observation: str) -> None:
        self.request = parse_task(task_text)
        self.receptacles: list[str] = _NAMES.findall(first_observation.split("Your task is to:")[0])
        self.held: str | None = None
        """The object in hand."""
        self.here: str | None = None
        """The receptacle arrived at last."""
        self.places: dict[str, str] = {}
        """Object -> receptacle where it was last seen."""
        self.searched: set[str] = set()
        """Receptacles whose contents have been seen."""
        self.opened: set[str] = set()
        """Receptacles that stand open, or have no door."""
        self.treated: dict[str, set[str]] = {"clean": set(), "heat": set(), "cool": set()}
        """Treatment -> objects that have it now."""
        self._chosen: str | None = None  # destination that already holds a finished object
        self._looked_again = False
        self._refused: set[tuple[str, str]] = set()  # (object kind, receptacle that does not take it)

    @property
    def visible(self) -> list[str]:
        """Objects known to lie in or on the receptacle here."""
        return [name for name, receptacle in self.places.items() if receptacle == self.here]

    def observe(self, action: str, observation: str) -> None:
        """Take in what `action` led to. Any action: the text of the observation alone is believed."""
        if match := _ARRIVE.search(observation):
            self.here = match[1]
        for pattern in (_ON, _OPEN):
            for match in pattern.finditer(observation):
                self._see(match[1], _NAMES.findall(match[2]))
        for match in _CLOSED.finditer(observation):
            self.opened.discard(match[1] or match[2])
        if match := _TAKE.match(observation):
            self.held = match[1]
            self.places.pop(match[1], None)
        elif match := _PUT.match(observation):
            self.held = None
            self.places[match[1]] = match[2]
        elif match := _TREAT.match(observation):
            self._treat(match[1], match[2])
        elif match := _CARRYING.match(observation):
            self.held = match[1]
            self.places.pop(match[1], None)
        elif observation.startswith("You are not carrying anything"):
            self.held = None

    def decide(self, admissible_actions: Sequence[str]) -> Decision:
        """The next action, always one of `admissible_actions`."""
        request, admissible = self.request, set(admissible_actions)
        destination = self._destination()
        if destination is not None and self._count_in(destination):
            self._chosen = destination
        if self.held is not None and kind_of(self.held) != request.target:
            decision = self._put_away(admissible)
        elif self.held is not None and request.lamp:
            decision = self._use_lamp(admissible)
        elif self.held is not None:
            decision = self._deliver(self.held, admissible)
        else:
            decision = self._fetch(admissible)
        if decision.action in admissible:
            self._looked_again = False
            return decision
        # Beliefs and world disagree: look again, at what is here first; if that told nothing, from another place.
        elsewhere = [action for action in admissible_actions if action.startswith("go to ")]
        if self._looked_again and elsewhere:
            self._looked_again = False
            return Decision(elsewhere[0], "look again")
        self._looked_again = True
        for action in (f"examine {self.here}", "inventory", "look"):
            if action in admissible:
                return Decision(action, "look again")
        return Decision(admissible_actions[0], "look again")

    # What is believed

    def _see(self, receptacle: str, names: list[str]) -> None:
        for name in [name for name, location in self.places.items() if location == receptacle]:
            del self.places[name]
        self.places.update(dict.fromkeys(names, receptacle))
        self.searched.add(receptacle)
        self.opened.add(receptacle)

    def _treat(self, treatment: str, name: str) -> None:
        self.treated[treatment].add(name)
        opposite = {"heat": "cool", "cool": "heat"}.get(treatment)
        if opposite:
            self.treated[opposite].discard(name)

    def _is_ready(self, name: str) -> bool:
        return not self.request.treatment or name in self.treated[self.request.treatment]

    def _destination(self) -> str | None:
        """The receptacle to fill: of the wanted kind, with most of the work done; two objects must share one."""
        options = [r for r in self.receptacles if kind_of(r) == self.request.destination]

        def merit(receptacle: str) -> tuple[int, bool, bool, bool]:
            is_chosen = receptacle == self._chosen  # of two with one object each, stay with the first
            return self._count_in(receptacle), is_chosen, receptacle == self.here, not self._is_closed(receptacle)

        return max(options, key=merit, default=None)

    def _count_in(self, receptacle: str) -> int:
        names = [name for name, location in self.places.items() if location == receptacle]
        return sum(kind_of(name) == self.request.target and self._is_ready(name) for name in names)

    def _placed(self) -> list[str]:
        """Objects that already are where and how the task wants them."""
        destination = self._destination() if self.request.destination else None
        return [name for name in self._targets() if self.places[name] == destination and self._is_ready(name)]

    def _targets(self) -> list[str]:
        return [name for name in self.places if kind_of(name) == self.request.target]

    def _candidates(self) -> list[str]:
        """Known objects worth fetching: here first, then treated ones, then in order of discovery."""
        placed = set(self._placed())
        names = [name for name in self._targets() if name not in placed]
        return sorted(names, key=lambda name: (self.places[name] != self.here, not self._is_ready(name)))

    # What to do

    def _fetch(self, admissible: set[str]) -> Decision:
        candidates = self._candidates()
        if not candidates:
            return self._search(self.request.target, admissible)
        name = candidates[0]
        receptacle = self.places[name]
        goal = f"take {name} from {receptacle}"
        intent = f"take {self.request.target}"
        if goal not in admissible and self.here == receptacle and not self._is_closed(receptacle):
            self.searched.discard(receptacle)
            del self.places[name]  # not there after all
        return self._reach(receptacle, goal, intent, admissible)

    def _use_lamp(self, admissible: set[str]) -> Decision:
        lamps = [name for name in self.places if kind_of(name) == self.request.lamp]
        if not lamps:
            return self._search(self.request.lamp, admissible)
        lamp = next((name for name in lamps if self.places[name] == self.here), lamps[0])
        return self._reach(self.places[lamp], f"use {lamp}", f"use {self.request.lamp}", admissible)

    def _deliver(self, name: str, admissible: set[str]) -> Decision:
        treatment, kind = self.request.treatment, self.request.target
        if not self._is_ready(name):
            tools = [r for r in self.receptacles if kind_of(r) == _TOOL_KINDS[treatment]]
            tool = self.here if self.here in tools else next(iter(tools), None)
            if tool is None:
                return Decision("look", "look again")
            action, intent = f"{treatment} {name} with {tool}", f"{treatment} {kind}"
            if action in admissible:
                return Decision(action, intent)
            return Decision(f"go to {tool}", intent)
        destination = self._destination()
        if destination is None:
            return Decision("look", "look again")
        intent = f"put {kind} in {self.request.destination}"
        return self._reach(destination, f"move {name} to {destination}", intent, admissible)

    def _put_away(self, admissible: set[str]) -> Decision:
        """Rid the hand of an object that the task does not want: here if possible, else where such things go."""
        held = self.held or ""
        intent = f"put down {kind_of(held)}"
        puts = sorted(action for action in admissible if action.startswith(f"move {held} to "))
        if puts:
            return Decision(puts[0], intent)
        if self.here is not None and not self._is_closed(self.here):
            self._refused.add((kind_of(held), self.here))
        options = [r for r in self._by_likelihood(kind_of(held)) if (kind_of(held), r) not in self._refused]
        # Nearest first: a closed receptacle here costs one step, an open one elsewhere too.
        receptacle = (
            self.here if self.here in options and self._is_likely(held, self.here) else next(iter(options), None)
        )
        if receptacle is None:
            self._refused.clear()
            return Decision("look", "look again")
        return self._reach(receptacle, f"move {held} to {receptacle}", intent, admissible)

    def _search(self, kind: str, admissible: set[str]) -> Decision:
        order = self._search_order(kind)
        if not order:  # everything was seen and it is nowhere: beliefs must be stale
            self.searched.clear()
            order = self._search_order(kind)
        if not order:
            return Decision("look", "look again")
        return self._reach(order[0], f"examine {order[0]}", f"find {kind}", admissible)

    def _reach(self, receptacle: str, goal: str, intent: str, admissible: set[str]) -> Decision:
        """`goal` if it can be done now, else the next step towards doing it at `receptacle`."""
        opening = f"open {receptacle}"
        # Examining a closed receptacle shows nothing; some cabinets have no door and may share a place with another.
        if goal in admissible and not (opening in admissible and goal.startswith("examine ")):
            return Decision(goal, intent)
        if opening in admissible:
            return Decision(opening, f"open {kind_of(receptacle)}")
        return Decision(f"go to {receptacle}", intent)

    # Where to look

    def _search_order(self, kind: str) -> list[str]:
        return [receptacle for receptacle in self._by_likelihood(kind) if receptacle not in self.searched]

    def _by_likelihood(self, kind: str) -> list[str]:
        """All receptacles, by the chance to find `kind` there per step that looking costs."""
        counts = {r: sum(kind_of(r) == kind_of(other) for other in self.receptacles) for r in self.receptacles}
        shares = _PLACES.get(kind, {})

        def value(receptacle: str) -> float:
            # A share of 0 is rare, and more than never.
            share = 1.0 + shares[kind_of(receptacle)] if kind_of(receptacle) in shares else 0.01
            return share / counts[receptacle] / (2 if self._is_closed(receptacle) else 1)

        return sorted(self.receptacles, key=lambda r: (r != self.here or kind_of(r) not in shares, -value(r)))

    def _is_likely(self, name: str, receptacle: str) -> bool:
        return kind_of(receptacle) in _PLACES.get(kind_of(name), {})

    def _is_closed(self, receptacle: str) -> bool:
        return kind_of(receptacle) in _OPENABLE_KINDS and receptacle not in self.opened


class AlfworldExpert:
    """A `TextExpert` that says what it holds and sees before it says what it wants: a policy that copies these facts
    from its prompt first picks actions that are there."""

    def __init__(self, task_text: str, first_observation: str) -> None:
        self.expert = TextExpert(task_text, first_observation)

    def observe(self, action: str, observation: str) -> None:
        self.expert.observe(action, observation)

    def decide(self, admissible_actions: Sequence[str]) -> Decision:
        expert = self.expert
        decision = expert.decide(admissible_actions)
        needed = expert.request.lamp if expert.request.lamp and expert.held else expert.request.target
        seen = next((name for name in expert.visible if kind_of(name) == needed), f"no {needed}")
        return Decision(decision.action, f"hold {expert.held or 'nothing'}. see {seen}. {decision.thought}")
