from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.search_qa.data import Question
from envs.search_qa.generator import HOPS, SPLITS, GeneratorOptions, make_world
from envs.search_qa.tasks import generated_tasks
from envs.search_qa.world import (
    KINDS,
    OF_KIND,
    RELATIONS,
    Entity,
    ask,
    coin_names,
    describe,
    find_fact,
    relate,
    understand,
)
from opid_core.errors import ConfigError, DataError

SMALL = GeneratorOptions(passages=120, train=60, valid_unseen=20)


def world(**changes):
    options = GeneratorOptions(**{"passages": 120, "train": 60, "valid_unseen": 20, **changes})
    return make_world(options)  # pyright: ignore[reportArgumentType] -- frozen, hence hashable


def texts_of(made) -> dict[str, str]:
    """Title -> text of all passages."""
    split = (contents.partition("\n") for _, contents in made.passages)
    return {title.strip('"'): text for title, _, text in split}


def walk(question: Question, texts: dict[str, str]) -> list[str]:
    """The entities and the value that lead from the question to its answer, read off the passages."""
    understood = understand(question.question)
    assert understood is not None
    name, path = understood
    visited = [name]
    for relation in path:
        fact = find_fact(relation, visited[-1], texts[visited[-1]])
        assert fact is not None
        visited.append(fact[1])
    return visited


def test_same_options_same_bytes():
    make_world.cache_clear()
    first = world(seed=5)
    make_world.cache_clear()
    again = world(seed=5)
    assert first is not again
    assert (first.passages, first.questions, first.digest) == (again.passages, again.questions, again.digest)
    assert world(seed=6).digest != first.digest


DIGEST, QUESTIONS = "e1ded0a1ceb0a5c1", "c9e08959080c7101"
"""Of the passages and the questions of the small world."""


def test_the_bytes_are_the_same_on_every_machine():
    made = world()
    questions = json.dumps([[q.question, q.golden_answers, q.data_source] for s in SPLITS for q in made.questions[s]])
    assert made.digest[:16] == DIGEST
    assert hashlib.sha256(questions.encode()).hexdigest()[:16] == QUESTIONS


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_the_bytes_are_the_same_in_every_process(hash_seed):
    """Whatever the process makes of the hash of a text."""
    program = (
        "import hashlib, json; from envs.search_qa.generator import SPLITS, GeneratorOptions, make_world; "
        "made = make_world(GeneratorOptions(passages=120, train=60, valid_unseen=20)); "
        "asked = [[q.question, q.golden_answers, q.data_source] for s in SPLITS for q in made.questions[s]]; "
        "print(made.digest[:16], hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16])"
    )
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    made = subprocess.run(
        [sys.executable, "-c", program], check=True, env=environment, capture_output=True, text=True
    ).stdout
    assert made.split() == [DIGEST, QUESTIONS]


@given(st.integers(0, 2**31), st.sampled_from([50, 61, 200]))
@settings(max_examples=10)
def test_the_passages_answer_every_question_and_splits_share_no_entity(seed, passages):
    made = world(seed=seed, passages=passages, train=40, valid_unseen=6)
    texts = texts_of(made)
    assert len(texts) == len(made.passages) == passages
    assert len({passage_id for passage_id, _ in made.passages}) == passages
    met: dict[str, set[str]] = {split: set() for split in SPLITS}
    for split in SPLITS:
        questions = made.questions[split]
        assert len({question.question for question in questions}) == len(questions)
        for index, question in enumerate(questions):
            visited = walk(question, texts)
            assert question.golden_answers == (visited[-1],)
            assert question.data_source == HOPS[index % 2]
            assert len(visited) == 2 + index % 2
            met[split].update(name for name in visited if name in texts)
    assert met["train"].isdisjoint(met["valid_unseen"])


@pytest.mark.parametrize("passages", [400, 2000])
def test_the_words_of_held_out_names_are_nearly_all_known_from_training(passages):
    made = world(passages=passages, train=1, valid_unseen=1)
    held_out, trained = made.names[: passages // 5], made.names[passages // 5 :]
    assert len({*made.names}) == passages == len(made.names)
    words = [{word for name in part for word in name.split()} for part in (held_out, trained)]
    assert len(words[0] - words[1]) <= 0.02 * len(words[0])
    people = [name for name in made.names if len(name.split()) == 2 and name.endswith("n")]
    assert len(people) == passages / 2 > 4 * len({word for name in people for word in name.split()})


def test_the_parts_of_the_world_are_not_joined():
    made = world(passages=200, train=1, valid_unseen=1)
    texts = texts_of(made)
    reached = {name: {other for other in texts if other in text and other != name} for name, text in texts.items()}
    start = walk(made.questions["valid_unseen"][0], texts)[0]
    connected, waiting = set(), [start]
    while waiting:
        name = waiting.pop()
        if name not in connected:
            connected.add(name)
            waiting += reached[name]
    assert len(connected) <= 40  # at most the held-out fifth
    assert walk(made.questions["train"][0], texts)[0] not in connected


@given(st.integers(0, 2**31))
@settings(max_examples=20)
def test_what_is_told_and_asked_is_understood(seed):
    rng = random.Random(seed)
    kinds = KINDS * 2
    entities = [Entity(name, kind) for name, kind in zip(coin_names(kinds, rng), kinds, strict=True)]
    relate(entities, rng)
    assert len({entity.name for entity in entities}) == len(entities)
    for entity in entities:
        text = describe(entity, rng)
        for relation in RELATIONS:
            expected = entity.value(relation) if relation.kind == entity.kind else None
            fact = find_fact(relation, entity.name, text)
            assert (fact and fact[1]) == expected
            assert fact is None or fact[0] in text
        for first in OF_KIND[entity.kind]:
            assert understand(ask([first], entity.name)) == (entity.name, [first])
            for last in OF_KIND[str(first.values)] if first.noun else ():
                assert understand(ask([first, last], entity.name)) == (entity.name, [first, last])


def test_other_questions_are_not_understood():
    for question in ("Who are you?", "", "where was x born", "Who wrote Hamlet?"):
        assert understand(question) is None


def test_task_lists():
    tasks = generated_tasks(SMALL, "valid_unseen")
    assert [task.task_id for task in tasks[:3]] == [
        "one_hop/valid_unseen/000000",
        "two_hop/valid_unseen/000001",
        "one_hop/valid_unseen/000002",
    ]
    assert [task.task_type for task in tasks] == ["one_hop", "two_hop"] * 10
    with pytest.raises(ConfigError, match=r"split: .*'test'.*train, valid_unseen"):
        generated_tasks(SMALL, "test")


def test_a_manifest_orders_the_generated_tasks(tmp_path):
    manifest = tmp_path / "ids"
    manifest.write_text("train two_hop/train/000003\ntrain one_hop/train/000000\n")
    tasks = generated_tasks(SMALL, "train", str(manifest))
    assert [task.task_id for task in tasks] == ["two_hop/train/000003", "one_hop/train/000000"]
    manifest.write_text("train one_hop/valid_unseen/000000\n")
    with pytest.raises(DataError, match=r"line 1: .*'one_hop/valid_unseen/000000'"):
        generated_tasks(SMALL, "train", str(manifest))


def test_more_questions_than_the_world_has_are_refused():
    # The first 10 of 50 entities are held out: PWPLPWPEPW, with 4 questions a P, 3 a W, 2 an L and 3 an E: 34.
    message = r"generator\.valid_unseen: 80 questions need 40 one_hop ones; a world of 50 passages has 34"
    with pytest.raises(ConfigError, match=message):
        world(passages=50, train=1, valid_unseen=80)
