"""PDDL problems of the ALFRED domain, in the form of the official games.

Ids carry coordinates as theirs do (`Apple_bar__minus_00_dot_10_bar__plus_01_dot_06_bar__minus_00_dot_75`); the number
that the player sees ("apple 2") comes from their order.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from envs.alfworld.rooms import LAMP, OBJECT_TYPES, OBJECTS, OPENABLE, RECEPTACLE_TYPES

_BASINS = {"SinkBasin": "Sink", "BathtubBasin": "Bathtub"}
_PREDICATES = {"clean": "cleanable", "heat": "heatable", "cool": "coolable", "slice": "sliceable"}
_TREATED = {
    "pick_clean_then_place_in_recep": ("cleanable", "isClean"),
    "pick_heat_then_place_in_recep": ("heatable", "isHot"),
    "pick_cool_then_place_in_recep": ("coolable", "isCool"),
}
_SHARED_LOCATION = 0.15


def goal(task_type: str, target: str, destination: str) -> str:
    """The goal formula of a task type. For look_at_obj_in_light, `destination` is the kind of lamp."""
    if task_type == "look_at_obj_in_light":
        lamp = (
            f"(objectType ?ot {destination}Type) (toggleable ?ot) (isToggled ?ot)"
            " (receptacleAtLocation ?r ?l) (atLocation ?a ?l) (inReceptacle ?ot ?r)"
        )
        held = f"(objectType ?o {target}Type) (holds ?a ?o)"
        return (
            f"(and (exists (?ot - object ?r - receptacle ?a - agent ?l - location) (and {lamp}))"
            f" (exists (?o - object ?a - agent) (and {held})))"
        )
    if task_type == "pick_two_obj_and_place":

        def placed(variable: str) -> str:
            return (
                f"(objectType {variable} {target}Type) (receptacleType ?r {destination}Type)"
                f" (inReceptacle {variable} ?r)"
            )

        second = f"(exists (?o2 - object) (and (not (= ?o1 ?o2)) {placed('?o2')}))"
        return f"(and (exists (?r - receptacle) (exists (?o1 - object) (and {placed('?o1')} {second}))))"
    facts = f"(inReceptacle ?o ?r) (objectType ?o {target}Type) (receptacleType ?r {destination}Type)"
    if task_type in _TREATED:
        able, done = _TREATED[task_type]
        facts = (
            f"({able} ?o) (objectType ?o {target}Type) (receptacleType ?r {destination}Type)"
            f" ({done} ?o) (inReceptacle ?o ?r)"
        )
    return f"(and (exists (?r - receptacle) (exists (?o - object) (and {facts}))))"


def write(
    name: str,
    receptacles: Sequence[tuple[str, int]],
    places: Mapping[tuple[str, int], tuple[str, int]],
    goal_formula: str,
    rng: random.Random,
) -> str:
    """The problem of a room.

    `receptacles` and the keys of `places` are (kind, running number); `places` maps an object to its receptacle.
    """
    ids = {thing: _id(thing[0], rng) for thing in (*receptacles, *places)}
    while len(set(ids.values())) < len(ids):
        ids = {thing: _id(thing[0], rng) for thing in ids}
    locations = _locations(receptacles, rng)
    start = _new_location(set(locations.values()), rng)
    basins = {ids[r]: ids[r].rsplit("_bar_", 1)[0] for r in receptacles if r[0] in _BASINS}
    objects = [(ids[o], o[0]) for o in places] + [
        (basins[ids[r]], _BASINS[r[0]]) for r in receptacles if r[0] in _BASINS
    ]
    taken = {ids[o]: OBJECTS[o[0]] for o in places if o[0] in OBJECTS}

    facts = [f"receptacleType {ids[r]} {r[0]}Type" for r in receptacles]
    facts += [f"objectType {identifier} {kind}Type" for identifier, kind in objects]
    object_kinds = sorted({o[0] for o in places if o[0] in OBJECTS})
    for receptacle_kind in sorted({r[0] for r in receptacles}):
        inside = [kind for kind in object_kinds if receptacle_kind in OBJECTS[kind].places]
        facts += [f"canContain {receptacle_kind}Type {kind}Type" for kind in inside]
    facts += [f"pickupable {identifier}" for identifier in taken]
    facts += [f"isReceptacleObject {identifier}" for identifier, kind in taken.items() if "holds" in kind.properties]
    facts += [f"openable {ids[r]}" for r in receptacles if r[0] in OPENABLE]
    facts.append(f"atLocation agent1 {start}")
    for word, predicate in _PREDICATES.items():
        facts += [f"{predicate} {identifier}" for identifier, kind in taken.items() if word in kind.properties]
    facts += [f"toggleable {ids[o]}" for o in places if o[0] == LAMP]
    facts += [f"inReceptacle {ids[o]} {ids[r]}" for o, r in places.items()]
    facts += [f"receptacleAtLocation {ids[r]} {locations[r]}" for r in receptacles]
    facts += [f"objectAtLocation {ids[o]} {locations[r]}" for o, r in places.items()]
    facts += [f"objectAtLocation {basins[ids[r]]} {locations[r]}" for r in receptacles if r[0] in _BASINS]

    declared = ["agent1 - agent"]
    declared += [f"{kind}Type - otype" for kind in OBJECT_TYPES]
    declared += [f"{kind}Type - rtype" for kind in RECEPTACLE_TYPES]
    declared += [f"{identifier} - object" for identifier, _ in objects]
    declared += [f"{ids[r]} - receptacle" for r in receptacles]
    declared += [f"{location} - location" for location in dict.fromkeys([*locations.values(), start])]
    text = "\n".join(
        [
            f"(define (problem plan_{name})",
            "(:domain alfred)",
            "(:objects",
            *(f"        {line}" for line in declared),
            "        )",
            "(:init",
            *(f"        ({fact})" for fact in facts),
            "        )",
            f"        (:goal {goal_formula})",
            ")",
            "",
        ]
    )
    return text


def _id(kind: str, rng: random.Random) -> str:
    """A random id with three coordinates in metres."""
    x, y, z = rng.randint(-400, 400), rng.randint(0, 220), rng.randint(-400, 400)
    coordinates = "".join(f"_bar_{_coordinate(value)}" for value in (x, y, z))
    if kind in _BASINS:
        return f"{_BASINS[kind]}{coordinates}_bar_{kind}"
    return kind + coordinates


def _coordinate(hundredths: int) -> str:
    sign = "_minus_" if hundredths < 0 else "_plus_"
    return f"{sign}{abs(hundredths) // 100:02d}_dot_{abs(hundredths) % 100:02d}"


def _locations(receptacles: Sequence[tuple[str, int]], rng: random.Random) -> dict[tuple[str, int], str]:
    """Where to stand for each receptacle. As in official games, neighbours of one kind sometimes share a place."""
    locations: dict[tuple[str, int], str] = {}
    for kind, number in receptacles:
        if number and (kind, number - 1) in locations and rng.random() < _SHARED_LOCATION:
            locations[kind, number] = locations[kind, number - 1]
        else:
            locations[kind, number] = _new_location(set(locations.values()), rng)
    return locations


def _new_location(used: set[str], rng: random.Random) -> str:
    while True:
        x, z, turn, tilt = rng.randint(-12, 12), rng.randint(-12, 12), rng.randint(0, 3), rng.choice((0, 30, 45, 60))
        parts = (f"_minus_{-value}" if value < 0 else str(value) for value in (x, z, turn, tilt))
        location = "loc_bar_" + "_bar_".join(parts)
        if location not in used:
            return location
