"""A fictional world: what its things are called, how they hang together, how that is told and asked, and an expert
that answers."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from envs.base import Decision
from opid_core.errors import ConfigError

KINDS = "PWPLPWPEPWPLPWPEPWPL"
"""One letter an entity, over and over: Person, Work, pLace, Event."""


@dataclass(frozen=True)
class Relation:
    """A fact that every entity of `kind` has. `{x}` is the entity, `{y}` the value.

    `values` are the possible values, or the kind letter of the entities that are; `told` the sentences that state the
    fact; `asked` the question; `noun` names the value by the entity, for the first half of a two-hop question.
    """

    name: str
    kind: str
    values: str | range | tuple[str, ...]
    told: tuple[str, ...]
    asked: str
    noun: str = ""


CRAFTS = (
    "baker", "beekeeper", "bookbinder", "carpenter", "clockmaker", "cooper", "dyer", "falconer", "ferryman", "glazier",
    "goldsmith", "hatter", "lockpicker", "mapmaker", "mason", "miller", "potter", "saddler", "shepherd", "tailor",
    "tanner", "thatcher", "watchman", "weaver",
)  # fmt: skip
GOODS = (
    "amber beads", "barley cakes", "blue glass", "bronze bells", "carved doors", "cedar boats", "copper kettles",
    "dried figs", "felt hats", "goat cheese", "green tea", "honey wine", "iron lamps", "linen sails", "paper kites",
    "pear brandy", "plum jam", "reed flutes", "salt bricks", "silk ribbons", "silver combs", "smoked trout",
    "walnut oil", "wool rugs",
)  # fmt: skip
PLACES = ("Bay", "Bridge", "Ford", "Gate", "Grove", "Hill", "Lake", "Marsh", "Mill", "Quay", "Rock", "Vale")
WORKS = ("Ballad", "Chronicle", "Hymn", "Lament", "Mosaic", "Opera", "Portrait", "Saga", "Tapestry", "Waltz")
EVENTS = ("Assembly", "Council", "Fair", "March", "Regatta", "Siege", "Treaty", "Uprising")
YEARS = range(300, 1000, 10)

RELATIONS = (
    Relation(
        "birthplace",
        "P",
        "L",
        ("{x} was born in {y}", "{x} is a native of {y}"),
        "Where was {x} born?",
        "the birthplace of {x}",
    ),
    Relation(
        "birth year",
        "P",
        YEARS,
        ("The birth of {x} fell in the year {y}", "The birth year of {x} is {y}"),
        "In what year was {x} born?",
    ),
    Relation(
        "craft",
        "P",
        CRAFTS,
        ("{x} worked as a {y}", "{x} made a living as a {y}"),
        "What did {x} work as?",
    ),
    Relation(
        "teacher",
        "P",
        "P",
        ("{x} was taught by {y}", "{x} learned everything from {y}"),
        "Who taught {x}?",
        "the teacher of {x}",
    ),
    Relation(
        "creator",
        "W",
        "P",
        ("{x} was created by {y}", "{x} is the masterpiece of {y}"),
        "Who created {x}?",
        "the creator of {x}",
    ),
    Relation(
        "completion year",
        "W",
        YEARS,
        ("{x} was completed in the year {y}", "The completion of {x} fell in the year {y}"),
        "In what year was {x} completed?",
    ),
    Relation(
        "subject",
        "W",
        "L",
        ("{x} tells of {y}", "{x} is all about {y}"),
        "Which place does {x} tell of?",
        "the place in {x}",
    ),
    Relation(
        "founder",
        "L",
        "P",
        ("{x} was founded by {y}", "{x} was once a camp of {y}"),
        "Who founded {x}?",
        "the founder of {x}",
    ),
    Relation(
        "goods",
        "L",
        GOODS,
        ("{x} is known for its {y}", "{x} sells its {y} everywhere"),
        "What is {x} known for?",
    ),
    Relation(
        "site",
        "E",
        "L",
        ("{x} took place in {y}", "{x} was held in {y}"),
        "Where did {x} take place?",
        "the site of {x}",
    ),
    Relation(
        "leader",
        "E",
        "P",
        ("{x} was led by {y}", "{x} was the plan of {y}"),
        "Who led {x}?",
        "the leader of {x}",
    ),
    Relation(
        "event year",
        "E",
        YEARS,
        ("{x} happened in the year {y}", "The date of {x} is the year {y}"),
        "In what year did {x} happen?",
    ),
)
OF_KIND = {kind: tuple(r for r in RELATIONS if r.kind == kind) for kind in "PWLE"}
_INTRODUCTIONS = {
    "P": "{x} is a person of some fame",
    "W": "{x} is a work that many know",
    "L": "{x} is a town with a market",
    "E": "{x} is an event of the old days",
}
_CLOSING = "More about {x} is not recorded"


@dataclass(slots=True)
class Entity:
    """A thing of the world; `facts` maps a relation's name to the entity or the text that is its value."""

    name: str
    kind: str
    facts: dict[str, Entity | str] = field(default_factory=dict, repr=False)

    def value(self, relation: Relation) -> str:
        value = self.facts[relation.name]
        return value.name if isinstance(value, Entity) else value


def coin_names(kinds: str, rng: random.Random) -> list[str]:
    """A name for each letter of `kinds`; no two are equal.

    Names are pairs of words from small sets, and half of the pairs or fewer are names: whoever knows those of one part
    of a world knows nearly all words of the other's, never which go together.
    """
    syllables = [c + v for c in "bdfghjklmnprstvz" for v in "aeiou"]
    coined = [(a + b).capitalize() for a in syllables for b in syllables]
    rng.shuffle(coined)
    names: dict[str, list[str]] = {}
    for kind, form, others in (("L", "{} {}", PLACES), ("W", "{1} of {0}", WORKS), ("E", "{1} of {0}", EVENTS)):
        count = kinds.count(kind)
        words = coined[: -(-2 * count // len(others))]
        names[kind] = rng.sample([form.format(word, other) for word in words for other in others], count)
    count = kinds.count("P")
    side = math.isqrt(2 * count) + 1
    first, last = [coined.pop() for _ in range(side)], [coined.pop() + "n" for _ in range(side)]
    names["P"] = rng.sample([f"{a} {b}" for a in first for b in last], count)
    return [names[kind].pop() for kind in kinds]


def wording(names: Iterable[str]) -> list[str]:
    """What passages, questions and thoughts about entities called `names` are made of: the two parts of each name, the
    second with the space before it, the texts around names, and the other values."""
    parts = (part for name in names for part in re.split(r"(?<= of )|(?= )(?! of )(?<! of)", name))
    forms = [form for relation in RELATIONS for form in (*relation.told, relation.asked, relation.noun)]
    forms += [*_INTRODUCTIONS.values(), _CLOSING, *(f"{relation.name} of {{x}}" for relation in RELATIONS)]
    around = [text for form in forms for text in re.split(r"\{[xy]\}", form) if len(text) > 1]
    relations = [relation.name for relation in RELATIONS]
    values = [*CRAFTS, *GOODS, *map(str, YEARS)]
    return list(dict.fromkeys([*around, *relations, "need ", *values, *sorted({*parts})]))


def relate(entities: Sequence[Entity], rng: random.Random) -> None:
    """Give each of `entities` its facts, all entities in them being of `entities` too, and none itself."""
    of_kind = {kind: [entity for entity in entities if entity.kind == kind] for kind in "PWLE"}
    for entity in entities:
        for relation in OF_KIND[entity.kind]:
            if isinstance(relation.values, str):
                value = rng.choice(of_kind[relation.values])
                while value is entity:
                    value = rng.choice(of_kind[relation.values])
                entity.facts[relation.name] = value
            else:
                entity.facts[relation.name] = str(rng.choice(relation.values))


def describe(entity: Entity, rng: random.Random) -> str:
    """The passage about `entity`: its quoted name as title, a newline, its facts in random order and wording."""
    facts = [
        rng.choice(relation.told).format(x=entity.name, y=entity.value(relation)) for relation in OF_KIND[entity.kind]
    ]
    rng.shuffle(facts)
    sentences = [_INTRODUCTIONS[entity.kind].format(x=entity.name), *facts, _CLOSING.format(x=entity.name)]
    return f'"{entity.name}"\n' + " ".join(f"{sentence}." for sentence in sentences)


def ask(path: Sequence[Relation], name: str) -> str:
    """The question for the value at the end of `path` (one or two relations) from the entity called `name`."""
    *first, last = path
    return last.asked.format(x=first[0].noun.format(x=name) if first else name)


def understand(question: str) -> tuple[str, list[Relation]] | None:
    """The entity's name and the path that `question` asks for; None for a question of another form."""
    for last in RELATIONS:
        if not (match := _fit(last.asked, question)):
            continue
        for first in RELATIONS:
            if first.noun and first.values == last.kind and (inner := _fit(first.noun, match)):
                return inner, [first, last]
        return match, [last]
    return None


def find_fact(relation: Relation, name: str, text: str) -> tuple[str, str] | None:
    """The sentence of a passage's `text` that tells the `relation` of the entity called `name`, and the value in it;
    None if there is none."""
    sentences = re.split(r"(?<=\.)\s", text)
    for form in relation.told:
        before, after = f"{form}.".format(x=name, y="\0").split("\0")
        for sentence in sentences:
            value = sentence.removeprefix(before).removesuffix(after)
            if value and f"{before}{value}{after}" == sentence:
                return sentence, value
    return None


def _fit(form: str, text: str) -> str | None:
    match = re.fullmatch(re.escape(form.format(x="\0")).replace("\0", "(.+)"), text)
    return match[1] if match else None


_DOCUMENT = re.compile(r'^Doc \d+: "([^"\n]+)"\n(.*)$', re.MULTILINE)


class SearchQaExpert:
    """Searches the entity that the question names, then the one that its passage leads to, and answers.

    Raises ConfigError for a question that the generator did not word.
    """

    def __init__(self, question: str) -> None:
        understood = understand(question)
        if understood is None:
            raise ConfigError(
                f"policy: there is no expert for questions such as {question!r}; name a base policy folder"
            )
        self.entity, self.path = understood
        self.searched = ""
        self.passages: dict[str, str] = {}

    def observe(self, action: str, observation: str) -> None:
        self.searched = action
        self.passages.update(_DOCUMENT.findall(observation))

    def decide(self, admissible_actions: Sequence[str]) -> Decision:
        """The next action: each step's thought is the sentence just read, word by word (a tiny policy learns to go on
        with what it has begun to quote long before it learns to look a relation up), or what is missing."""
        entity, known = self.entity, ""
        for relation in self.path:
            fact = find_fact(relation, entity, self.passages.get(entity, ""))
            if fact is None:
                # The same query finds the same passages: asked again, it says what about the entity is wanted.
                query = f"{entity} {relation.name}" if f">{entity}<" in self.searched else entity
                return Decision(f"<search>{query}</search>", f"{known}need {relation.name} of {entity}.")
            known, entity = f"{fact[0]} ", fact[1]
        return Decision(f"<answer>{entity}</answer>", known.strip())

    def clumsy_actions(self, admissible_actions: Sequence[str]) -> Sequence[str]:
        """Searches for a relation alone or for what was read on the way, and answers with names that were read."""
        if not self.passages:
            return [f"<search>{relation.name}</search>" for relation in self.path] + [f"<answer>{self.entity}</answer>"]
        read = list(self.passages)
        for title, text in self.passages.items():
            facts = (find_fact(relation, title, text) for relation in RELATIONS)
            read += [fact[1] for fact in facts if fact is not None]
        read = list(dict.fromkeys(read))
        return [f"<search>{name}</search>" for name in read] + [f"<answer>{name}</answer>" for name in read]
