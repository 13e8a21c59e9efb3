"""Seeded corpora about a fictional world, and one- and two-hop questions that only they can answer.

The entities are divided into those of training (four fifths) and held-out ones; no fact joins the two, so no entity
that a question names, passes through or asks for is part of the other split's questions.
"""

from __future__ import annotations

import functools
import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from pydantic import Field

from envs.search_qa.data import Question
from envs.search_qa.world import KINDS, OF_KIND, Entity, Relation, ask, coin_names, describe, relate
from opid_core.errors import ConfigError, DataError
from opid_core.sections import Section

SPLITS = ("train", "valid_unseen")
HOPS = ("one_hop", "two_hop")
"""The data sources of the questions."""
_HELD_OUT_SHARE = 0.2


class GeneratorOptions(Section):
    """The made world. The same options make the same bytes on every machine."""

    seed: int = Field(default=0, ge=0)
    """Seed of the world and its questions."""
    passages: int = Field(default=2000, ge=50, le=100_000)
    """Passages; each describes one person, work, place or event."""
    train: int = Field(default=2000, ge=1, le=100_000)
    """Questions of the training split."""
    valid_unseen: int = Field(default=200, ge=1, le=100_000)
    """Questions of the validation split; training never meets their entities."""


@dataclass(frozen=True)
class GeneratedWorld:
    """`passages` are (id, contents) pairs, `questions` one list a split, `names` those of all entities; `digest` is the
    hash of the passages."""

    passages: Sequence[tuple[str, str]] = field(repr=False)
    questions: dict[str, list[Question]] = field(repr=False)
    names: Sequence[str] = field(repr=False)
    digest: str


@functools.lru_cache(maxsize=4)
def make_world(options: GeneratorOptions) -> GeneratedWorld:
    """The world of `options`. Raises ConfigError if it has fewer questions than are asked for, DataError if the
    passages do not answer one of them (never expected)."""
    rng = random.Random(f"search_qa/{options.seed}/{options.passages}/world")
    kinds = (KINDS * (options.passages // len(KINDS) + 1))[: options.passages]
    entities = [Entity(name, kind) for name, kind in zip(coin_names(kinds, rng), kinds, strict=True)]
    held_out = round(_HELD_OUT_SHARE * len(entities))
    members = {"train": entities[held_out:], "valid_unseen": entities[:held_out]}
    for part in members.values():
        relate(part, rng)
    texts = {entity.name: describe(entity, rng) for entity in entities}
    order = list(texts)
    rng.shuffle(order)
    passages = [(str(number), texts[name]) for number, name in enumerate(order)]
    digest = hashlib.sha256("\n".join(json.dumps(passage) for passage in passages).encode()).hexdigest()
    questions = {split: _questions(split, members[split], texts, options) for split in SPLITS}
    return GeneratedWorld(passages, questions, list(texts), digest)


def _questions(
    split: str, entities: Sequence[Entity], texts: dict[str, str], options: GeneratorOptions
) -> list[Question]:
    """The questions of a split: the two kinds take turns, so every prefix is balanced."""
    rng = random.Random(f"search_qa/{options.seed}/{options.passages}/{split}")
    wanted: int = getattr(options, split)
    drawn: dict[str, list[tuple[Entity, Sequence[Relation]]]] = {}
    for hop, share in zip(HOPS, ((wanted + 1) // 2, wanted // 2), strict=True):
        possible = [(entity, path) for entity in entities for path in _PATHS[hop][entity.kind]]
        if share > len(possible):
            raise ConfigError(
                f"environment.options.generator.{split}: {wanted} questions need {share} {hop} ones; a world of"
                f" {options.passages} passages has {len(possible)}"
            )
        drawn[hop] = rng.sample(possible, share)
    questions = []
    for index in range(wanted):
        hop = HOPS[index % 2]
        entity, path = drawn[hop][index // 2]
        answer = _answer(entity, path, texts)
        questions.append(Question(f"{split}/{index:06d}", ask(path, entity.name), (answer,), hop, split))
    return questions


def _answer(entity: Entity, path: Sequence[Relation], texts: dict[str, str]) -> str:
    """Where `path` leads from `entity`. Raises DataError unless each passage on the way tells the next step."""
    here: Entity | str = entity
    for relation in path:
        assert isinstance(here, Entity)
        if here.value(relation) not in texts[here.name]:
            raise DataError(f"generated world: the passage on {here.name} does not tell its {relation.name}")
        here = here.facts[relation.name]
    return here.name if isinstance(here, Entity) else here


def _paths() -> dict[str, dict[str, list[tuple[Relation, ...]]]]:
    """Hop -> kind of entity -> the paths that start there."""
    one = {kind: [(relation,) for relation in relations] for kind, relations in OF_KIND.items()}
    two = {
        kind: [(first, last) for first in relations if first.noun for last in OF_KIND[str(first.values)]]
        for kind, relations in OF_KIND.items()
    }
    return {"one_hop": one, "two_hop": two}


_PATHS = _paths()
