"""Reader of PDDL problems over the fixed ALFRED domain: entities, facts, display names and a compiled goal.

Everything is lower case, as the planner's translator makes it.
"""

from __future__ import annotations

import functools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from envs.alfworld.games import Game
from opid_core.errors import DataError

Fact = tuple[str, ...]
Facts = Mapping[str, set[Fact]]
"""Predicate -> argument tuples that are true."""
Goal = Callable[[Facts], bool]
_Formula = Callable[[Facts, dict[str, str]], bool]
Way = tuple[Fact, ...]
"""Changing facts, each a predicate and its arguments, that together make a goal true."""

PREDICATES = {
    "atlocation": 2,
    "receptacleatlocation": 2,
    "objectatlocation": 2,
    "openable": 1,
    "opened": 1,
    "inreceptacle": 2,
    "isreceptacleobject": 1,
    "inreceptacleobject": 2,
    "isreceptacleobjectfull": 1,
    "wasinreceptacle": 2,
    "checked": 1,
    "examined": 1,
    "receptacletype": 2,
    "cancontain": 2,
    "objecttype": 2,
    "holds": 2,
    "holdsany": 1,
    "holdsanyreceptacleobject": 1,
    "full": 1,
    "isclean": 1,
    "cleanable": 1,
    "ishot": 1,
    "heatable": 1,
    "iscool": 1,
    "coolable": 1,
    "pickupable": 1,
    "moveable": 1,
    "toggleable": 1,
    "ison": 1,
    "istoggled": 1,
    "sliceable": 1,
    "issliced": 1,
}
"""Number of arguments of each predicate of the domain."""

_ABOUT_PLACES = ("atlocation", "objectatlocation", "opened", "inreceptacle", "holds", "holdsany", "checked")
_ABOUT_OBJECTS = ("isclean", "ishot", "iscool", "ison", "istoggled", "issliced")
DYNAMIC = frozenset((*_ABOUT_PLACES, *_ABOUT_OBJECTS))
"""The predicates that some action changes; all others hold forever."""

TYPES = ("agent", "location", "receptacle", "object", "rtype", "otype")


@dataclass(frozen=True)
class Problem:
    """A parsed game, shared by all its episodes and never changed."""

    agent: str
    types: dict[str, str]
    facts: dict[str, frozenset[Fact]]
    names: dict[str, str]
    """Id -> what the player calls it ("apple 2")."""
    receptacles_at: dict[str, tuple[str, ...]]
    """Location -> its receptacles, sorted by id."""
    location_of: dict[str, str]
    """Receptacle -> its location."""
    goal: Goal
    ways: Callable[[], Iterator[Way]]
    """All ways to make the goal true, in a fixed order. Raises DataError for a goal that forbids changing facts."""

    @functools.cached_property
    def goal_things(self) -> frozenset[str]:
        """All that some way to make the goal true is about; everything where that cannot be told."""
        try:
            return frozenset(thing for way in self.ways() for fact in way for thing in fact[1:])
        except DataError:
            return frozenset(self.names)

    def initial_facts(self) -> dict[str, set[Fact]]:
        """A fresh copy of the facts that actions change."""
        return {predicate: set(self.facts[predicate]) for predicate in DYNAMIC}


@functools.lru_cache(maxsize=64)
def parse(game: Game) -> Problem:
    """The problem of `game`; cached, so that the members of a group share the work.

    Raises DataError that names the game and what cannot be used.
    """
    where = f"game {game.game_id}: pddl_problem"
    sections = _sections(_read(game.pddl_problem, where), where)
    types = _typed(sections[":objects"], where)
    facts = _facts(sections[":init"], types, where)
    agents = [name for name, kind in types.items() if kind == "agent"]
    if len(agents) != 1 or len(facts["atlocation"]) != 1:
        raise DataError(f"{where}: expected one agent at one location, got {len(agents)} agents")
    location_of: dict[str, str] = {}
    for receptacle, location in sorted(facts["receptacleatlocation"]):
        if location_of.setdefault(receptacle, location) != location:
            raise DataError(f"{where}: receptacle {receptacle} is at two locations")
    receptacles_at: defaultdict[str, list[str]] = defaultdict(list)
    for receptacle in sorted(location_of):
        receptacles_at[location_of[receptacle]].append(receptacle)
    if len(sections[":goal"]) != 1:
        raise DataError(f"{where}: expected one goal formula")
    _check_names(sections[":goal"][0], types.keys(), where)
    compiler = _GoalCompiler(types, facts, where)
    formula = compiler.compile(sections[":goal"][0])
    return Problem(
        agent=agents[0],
        types=types,
        facts={predicate: frozenset(facts[predicate]) for predicate in PREDICATES},
        names=display_names({argument for group in facts.values() for fact in group for argument in fact}),
        receptacles_at={location: tuple(here) for location, here in receptacles_at.items()},
        location_of=location_of,
        goal=lambda state: formula(state, {}),
        ways=lambda: compiler.ways(sections[":goal"][0], {}),
    )


def display_names(ids: set[str]) -> dict[str, str]:
    """What the player calls each thing: kind and number, counted down in the order of the ids.

    An id without coordinates keeps its own name, followed by a space: so does ALFWorld.
    """
    kinds = {}
    for identifier in sorted(ids):
        kind, bar, _ = identifier.partition("_bar_")
        kinds[identifier] = kind + ("basin" if "basin" in identifier else "") if bar else ""
    left = Counter(kind for kind in kinds.values() if kind)
    names = {}
    for identifier, kind in kinds.items():
        if kind:
            names[identifier] = f"{_unescaped(kind)} {left[kind]}"
            left[kind] -= 1
        else:
            names[identifier] = f"{_unescaped(identifier)} "
    return names


def _unescaped(name: str) -> str:
    for word, character in (("_minus_", "-"), ("_plus_", "+"), ("_dot_", "."), ("_comma_", ",")):
        name = name.replace(word, character)
    return name


def _read(text: str, where: str) -> list[Any]:
    """Nested lists of lower-case words."""
    if ";" in text:
        text = "\n".join(line.partition(";")[0] for line in text.split("\n"))
    stack: list[list[Any]] = [[]]
    for token in text.lower().replace("(", " ( ").replace(")", " ) ").split():
        if token == "(":
            stack.append([])
        elif token == ")":
            closed = stack.pop()
            if not stack:
                raise DataError(f"{where}: one closing bracket too many")
            stack[-1].append(closed)
        else:
            stack[-1].append(token)
    if len(stack) != 1:
        raise DataError(f"{where}: {len(stack) - 1} brackets are not closed")
    return stack[0]


_SECTIONS = (":objects", ":init", ":goal")


def _sections(tree: list[Any], where: str) -> dict[str, list[Any]]:
    if len(tree) != 1 or not isinstance(tree[0], list) or tree[0][:1] != ["define"]:
        raise DataError(f"{where}: expected one (define (problem ...) ...)")
    sections = {part[0]: part[1:] for part in tree[0][1:] if isinstance(part, list) and part and part[0] in _SECTIONS}
    missing = [name for name in _SECTIONS if name not in sections]
    if missing:
        raise DataError(f"{where}: no section {missing[0]}")
    return sections


def _typed(words: object, where: str) -> dict[str, str]:
    """`a b - type c - type` as name -> type."""
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise DataError(f"{where}: expected names and their types, got {words!r}")
    types: dict[str, str] = {}
    pending: list[str] = []
    position = 0
    while position < len(words):
        if words[position] == "-":
            kind = words[position + 1] if position + 1 < len(words) else None
            if kind not in TYPES:
                raise DataError(f"{where}: unknown type {kind!r}; the domain has: {', '.join(TYPES)}")
            types.update(dict.fromkeys(pending, kind))
            pending = []
            position += 2
        else:
            pending.append(words[position])
            position += 1
    if pending:
        raise DataError(f"{where}: {pending[0]} has no type")
    return types


def _facts(section: Sequence[Any], types: Mapping[str, str], where: str) -> dict[str, set[Fact]]:
    facts: dict[str, set[Fact]] = {predicate: set() for predicate in PREDICATES}
    for entry in section:
        if entry and entry[0] == "=":  # distances and costs, which no action reads
            continue
        predicate, *arguments = entry if isinstance(entry, list) and entry else [""]
        if not all(isinstance(word, str) for word in (predicate, *arguments)):
            raise DataError(f"{where}: a fact is made of words, got {entry!r}")
        if PREDICATES.get(predicate) != len(arguments):
            raise DataError(f"{where}: {predicate!r} with {len(arguments)} arguments is no fact of the ALFRED domain")
        for argument in arguments:
            if argument not in types:
                raise DataError(f"{where}: ({' '.join(map(str, entry))}) names {argument}, which is no object")
        facts[predicate].add(tuple(arguments))
    return facts


def _check_names(formula: Any, known: Set[str], where: str) -> None:
    """Raise DataError unless each word of the goal names an object or a variable of a quantifier around it."""
    if not isinstance(formula, list) or not formula:
        raise DataError(f"{where}: not a goal formula: {formula!r}")
    operator, *rest = formula
    if operator in ("exists", "forall") and len(rest) == 2:
        _check_names(rest[1], known | _typed(rest[0], where).keys(), where)
    elif operator in ("and", "or", "not", "imply"):
        for part in rest:
            _check_names(part, known, where)
    elif unknown := [word for word in rest if not isinstance(word, str) or word not in known]:
        raise DataError(f"{where}: the goal names {unknown[0]!r}, which is no object and no variable")


class _GoalCompiler:
    """Turns a goal formula into closures. What never changes is decided here, once a game."""

    def __init__(self, types: Mapping[str, str], facts: Facts, where: str) -> None:
        self.types, self.facts, self.where = types, facts, where
        self.index: defaultdict[tuple[str, int, str], list[Fact]] = defaultdict(list)
        for predicate in PREDICATES.keys() - DYNAMIC:
            for fact in sorted(facts[predicate]):
                for position, argument in enumerate(fact):
                    self.index[predicate, position, argument].append(fact)

    def compile(self, formula: Any) -> _Formula:
        operator, *rest = formula
        if operator in ("and", "or"):
            parts = [self.compile(part) for part in rest]
            if operator == "and":
                return lambda facts, values: all(part(facts, values) for part in parts)
            return lambda facts, values: any(part(facts, values) for part in parts)
        if operator == "not" and len(rest) == 1:
            inner = self.compile(rest[0])
            return lambda facts, values: not inner(facts, values)
        if operator == "imply" and len(rest) == 2:
            return self.compile(["or", ["not", rest[0]], rest[1]])
        if operator == "forall" and len(rest) == 2:
            return self.compile(["not", ["exists", rest[0], ["not", rest[1]]]])
        if operator == "exists" and len(rest) == 2:
            return self._exists(_typed(rest[0], self.where), rest[1])
        if operator == "=" and len(rest) == 2:
            left, right = rest
            return lambda facts, values: values.get(left, left) == values.get(right, right)
        if not isinstance(operator, str) or PREDICATES.get(operator) != len(rest):
            raise DataError(f"{self.where}: cannot evaluate goal part {operator!r} with {len(rest)} arguments")
        known = self.facts if operator not in DYNAMIC else None
        return lambda facts, values: (
            tuple(values.get(word, word) for word in rest) in (known if known is not None else facts)[operator]
        )

    def _exists(self, variables: dict[str, str], body: Any) -> _Formula:
        """Values that satisfy the body's unchanging conjuncts are listed now; the rest of the body is tried on each."""
        decided, undecided = self._split(body, variables)
        remaining = self.compile(["and", *undecided])
        candidates = list(self._assignments(variables, decided, {}))
        return lambda facts, values: any(remaining(facts, {**values, **candidate}) for candidate in candidates)

    def ways(self, formula: Any, values: dict[str, str]) -> Iterator[Way]:
        """Each way to make `formula` true with these values of its free variables."""
        operator, *rest = formula
        if operator == "and":
            yield from self._joint_ways(rest, values)
        elif operator == "or":
            for part in rest:
                yield from self.ways(part, values)
        elif operator == "exists":
            variables = _typed(rest[0], self.where)
            outer = {name: value for name, value in values.items() if name not in variables}
            decided, remaining = self._split(rest[1], {**outer, **variables})
            for candidate in self._assignments(variables, decided, outer):
                yield from self._joint_ways(remaining, candidate)
        elif operator in DYNAMIC:
            fact: tuple[Any, ...] = (operator, *[values.get(word, word) for word in rest])
            yield (fact,)
        elif operator == "=" or operator in PREDICATES or (operator == "not" and rest[0][0] == "="):
            if self.compile(formula)({}, values):
                yield ()
        else:
            raise DataError(f"{self.where}: the planner cannot make goal part {operator!r} true")

    def _joint_ways(self, formulas: Sequence[Any], values: dict[str, str]) -> Iterator[Way]:
        if not formulas:
            yield ()
            return
        for way in self.ways(formulas[0], values):
            for others in self._joint_ways(formulas[1:], values):
                yield (*way, *(fact for fact in others if fact not in way))

    def _split(self, body: Any, variables: Mapping[str, str]) -> tuple[list[Any], list[Any]]:
        """The conjuncts of `body`: those that `variables` alone decide forever, and the others."""
        conjuncts = body[1:] if isinstance(body, list) and body[:1] == ["and"] else [body]
        decided = [c for c in conjuncts if self._is_static_fact(c) and self._uses_only(c, variables)]
        return decided, [c for c in conjuncts if c not in decided]

    @staticmethod
    def _is_static_fact(formula: Any) -> bool:
        if not isinstance(formula, list) or not all(isinstance(word, str) for word in formula):
            return False
        return formula[0] not in DYNAMIC and PREDICATES.get(formula[0]) == len(formula) - 1

    @staticmethod
    def _uses_only(fact: Sequence[str], variables: Mapping[str, str]) -> bool:
        return all(word in variables for word in fact[1:] if word.startswith("?"))

    def _assignments(
        self, variables: Mapping[str, str], conjuncts: Sequence[Sequence[str]], values: dict[str, str]
    ) -> Iterator[dict[str, str]]:
        """All values of `variables` that make the static `conjuncts` true, most constrained conjunct first."""
        if conjuncts:
            bound = [sum(not word.startswith("?") or word in values for word in c[1:]) for c in conjuncts]
            best = bound.index(max(bound))
            predicate, *words = conjuncts[best]
            others = [*conjuncts[:best], *conjuncts[best + 1 :]]
            fixed = [(i, values.get(w, w)) for i, w in enumerate(words) if not w.startswith("?") or w in values]
            matches = self.index[predicate, *fixed[0]] if fixed else sorted(self.facts[predicate])
            for fact in matches:
                extended = dict(values)
                if all(self._bind(extended, variables, word, value) for word, value in zip(words, fact, strict=True)):
                    yield from self._assignments(variables, others, extended)
            return
        free = [name for name in variables if name not in values]
        if not free:
            yield values
            return
        for value, kind in self.types.items():
            if self._fits(kind, variables[free[0]]):
                yield from self._assignments(variables, (), {**values, free[0]: value})

    def _bind(self, values: dict[str, str], variables: Mapping[str, str], word: str, value: str) -> bool:
        if not word.startswith("?"):
            return word == value
        if word not in values and not self._fits(self.types[value], variables[word]):
            return False
        return values.setdefault(word, value) == value

    @staticmethod
    def _fits(kind: str, wanted: str) -> bool:
        """In PDDL every type is an `object`."""
        return wanted in (kind, "object")
