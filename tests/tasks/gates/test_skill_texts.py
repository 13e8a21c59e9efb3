"""What the texts of skills are compared with."""

from __future__ import annotations

import itertools
import random

from hypothesis import given
from hypothesis import strategies as st

from tasks.gates.skill_texts import (
    NEAR_DUPLICATE,
    duplicate_of,
    forbidden_in,
    longest_copied_run,
    near_duplicate_of,
    searchable,
    without,
)

ELEVEN = "one two three four five six seven eight nine ten eleven"  # 10 pairs of neighbours


def test_duplicates_name_the_first():
    assert duplicate_of(["a", "b", "a", "a", "A"], ["s1", "s2", "s3", "s4", "s5"]) == ["", "", "s1", "s1", ""]


def test_near_duplicates_by_pairs_of_words():
    names = [f"s{i}" for i in range(5)]
    texts = [
        ELEVEN,
        f"{ELEVEN.upper()}, twelve!",  # 10 of 11 pairs
        ELEVEN.replace("eleven", "12"),  # 9 shared of 11 pairs: 0.82
        ELEVEN.replace("two", "2"),  # 8 shared of 12: 0.67
        ELEVEN,  # the same is no near-duplicate
    ]
    assert near_duplicate_of(texts, names) == ["", "s0", "s0", "", ""]
    assert near_duplicate_of(["", "stop", "Stop.", "..."], names[:4]) == ["", "", "s1", "s0"]


def naive(texts: list[str]) -> list[str]:
    def pairs(text: str) -> set:
        words = text.split()
        return set(itertools.pairwise(words)) or {tuple(words)}

    kept: list[str] = []
    near = []
    for text in texts:
        similar = [k for k in kept if len(pairs(k) & pairs(text)) >= NEAR_DUPLICATE * len(pairs(k) | pairs(text))]
        if text in kept or not similar:
            near.append("")
            kept.append(text)
        else:
            near.append(similar[0])
    return near


@given(st.lists(st.lists(st.sampled_from("abc"), max_size=9).map(" ".join), max_size=12))
def test_the_fast_search_finds_what_comparing_all_pairs_does(texts):
    found = near_duplicate_of(texts, texts)
    assert [bool(name) for name in found] == [bool(name) for name in naive(texts)]


def test_thousands_of_texts_are_few_comparisons():
    """Skills of a template: each differs from all others in a few of its words."""
    draw = random.Random(0)
    words = [f"w{i}" for i in range(400)]
    texts = ["Go to the " + " then take the ".join(draw.sample(words, 8)) for _ in range(2000)]
    texts += [f"{text} now" for text in texts]
    found = near_duplicate_of(texts, texts)
    assert found[:2000] == [""] * 2000
    assert found[2000:] == texts[:2000]


def test_runs_of_copied_words():
    source = searchable(["You see a mug 1, and a desk.", "On the desk you see nothing."])
    assert longest_copied_run("First look: YOU SEE A MUG 1 and run", source) == 6
    assert longest_copied_run("a desk on the desk", source) == 3  # no run goes over the end of a text
    assert longest_copied_run("mugs and see", source) == 1
    assert longest_copied_run("", source) == 0
    assert longest_copied_run("anything", searchable([])) == 0


def test_what_the_policy_wrote_but_for_actions_and_what_it_was_shown():
    wrote = searchable(["I think the mug is on shelf 2, so I go to shelf 2 and look.", "Go to shelf 20!"])
    plain = without(wrote, ["go to shelf 2", "shelf 2", "..."])
    assert plain == searchable(["I think the mug is on", "so I", "and look", "Go to shelf 20"])
    skill = "Do now: go to shelf 2 and look. I think the mug is on shelf 2, so I go to shelf 2."
    assert longest_copied_run(skill, wrote) == 14
    assert longest_copied_run(skill, plain) == 6  # I think the mug is on
    assert longest_copied_run(skill, plain, searchable(["Hint: I think the mug is on a shelf"])) == 3  # of shelf 20
    assert (
        longest_copied_run(skill, plain, searchable(["think the mug is on"])) == 6
    )  # the run as a whole was not shown
    assert without(wrote, []) == wrote


def test_forbidden_texts_are_whole_words():
    assert forbidden_in("Say Paris.", ["London", "paris"]) == "paris"
    assert forbidden_in("The U.S. Senate", ["u s senate"]) == "u s senate"
    assert forbidden_in("Comparison", ["paris"]) == ""
    assert forbidden_in("Say it.", ["", "..."]) == ""
