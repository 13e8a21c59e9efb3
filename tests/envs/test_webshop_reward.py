"""WebShop's reward, part by part, with numbers worked out by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.webshop.catalog import Product
from envs.webshop.goals import Goal
from envs.webshop.reward import (
    attribute_matches,
    base_colour,
    goal_option_keys,
    option_matches,
    score,
    type_factor,
)


def product(**changes) -> Product:
    values = {
        "asin": "B000000MUG",
        "category": "garden",
        "query": "mugs",
        "product_category": "Kitchen › Cups › Mugs",
        "name": "Stone Mug",
        "description": "Holds hot tea.",
        "bullet_points": ("Lead free", "Easy clean"),
        "prices": (12.5,),
        "price_text": "$12.5",
        "options": {"color": ("red", "navy blue"), "size": ("12 oz",)},
        "attributes": ("dishwasher safe", "hand made"),
        "rating": "N.A.",
        "reviews": (),
        "instruction": "Find me mugs",
        "instruction_attributes": ("hand made",),
        "human_goals": (),
    }
    return Product(**{**values, **changes})


def goal(**changes) -> Goal:
    values = {
        "product": 0,
        "asin": "B000000MUG",
        "query": "mugs",
        "product_category": "Kitchen › Cups › Mugs",
        "name": "Stone Mug",
        "instruction": "Find me mugs",
        "attributes": ("hand made", "lead free"),
        "options": {"color": "navy blue", "size": "12 oz"},
        "price_upper": 30.0,
    }
    return Goal(**{**values, **changes})


NOUNS = ("stone", "mug")


@pytest.mark.parametrize(
    ("options", "price", "expected"),
    [
        # 2 attributes (one of the product's list, one of its bullet points), 2 options, the price: 5 of 5.
        ({"color": "navy blue", "size": "12 oz"}, 12.5, 1.0),
        ({"color": "navy blue"}, 12.5, 4 / 5),
        ({}, 30.0, 3 / 5),
        ({}, 30.01, 2 / 5),
    ],
)
def test_whole_reward(options, price, expected):
    assert score(product(), NOUNS, price, options, goal(), NOUNS, "fixed") == expected


def test_a_wrong_product_scales_the_reward():
    other = product(
        query="lamps",
        product_category="Home › Lamps",
        name="Lamp",
        description="",
        bullet_points=(),
        attributes=("hand made",),
    )
    # r_type 0.5: no common query or category, 1 of 5 nouns in common (0.2 is not above 0.2); 1 attribute and the price.
    nouns, goal_nouns = ("lamp", "stone"), ("stone", "mug", "set", "gift", "box")
    assert score(other, nouns, 5.0, {}, goal(), goal_nouns, "parity") == 0.5 * 2 / 5


@pytest.mark.parametrize(
    ("changes", "nouns", "goal_nouns", "factor"),
    [
        ({}, ("stone", "mug"), ("stone", "mug"), 1.0),
        ({"query": "lamps"}, ("mug",), ("stone", "mug"), 1.0),  # the same categories
        ({"query": "lamps", "product_category": "Mugs › Cups"}, ("mug",), ("stone", "mug"), 1.0),  # two, in any order
        ({"query": "lamps", "product_category": "Kitchen"}, ("mug",), ("stone", "mug"), 1.0),  # half of the nouns
        ({"query": "lamps", "product_category": "Kitchen"}, ("a",), ("a", "b", "c", "d", "e"), 0.5),  # a fifth
        ({"query": "lamps", "product_category": "Kitchen"}, ("a",), tuple("abcdefghij"), 0.5),  # a tenth
        ({}, ("a",), tuple("abcdefghijk"), 0.1),  # less than a tenth, even with the same query
        ({}, ("lamp",), ("stone", "mug"), 0.0),
        ({}, (), ("stone", "mug"), 0.0),
        ({}, ("lamp",), (), 1.0),  # a goal name without nouns counts as 0.2
        ({"query": "lamps", "product_category": "Kitchen"}, ("lamp",), (), 0.5),
        ({}, ("mug",), ("mug", "mug", "mug"), 1.0),  # 1 of 3: repeated nouns count in the denominator
    ],
)
def test_type_factor(changes, nouns, goal_nouns, factor):
    assert type_factor(product(**changes), nouns, goal(), goal_nouns) == factor


@pytest.mark.parametrize(
    ("wish", "matches"),
    [
        ("hand made", 1),
        ("made by hand", 1),  # the tokens of "hand made" and more: 100
        ("handmade", 1),  # 2 * 8 of 17 characters: 94
        ("hand maker", 0),  # 2 * 8 of 19 characters: 84
        ("dishwasher safe!", 1),
        ("lead free", 1),  # in the bullet points, without regard to case
        ("free easy", 1),  # the points are joined by a space
        ("hot tea", 1),  # in the description
        ("stone mug", 1),  # in the name
        ("Stone", 0),  # the wish itself is not lowered
        ("glass", 0),
    ],
)
def test_attribute_matches(wish, matches):
    assert attribute_matches(product(), [wish]) == matches


@pytest.mark.parametrize(
    ("option", "colour"),
    [
        ("navy blue", "blue"),  # the first in the list of colours, not in the text
        ("black forest", "black"),
        ("violet lavender", "lavender"),
        ("steelivy fuchsia", "fuchsia"),
        ("standard", "tan"),
        ("12 oz", "12 oz"),
        ("", ""),
    ],
)
def test_base_colour(option, colour):
    assert base_colour(option) == colour


@pytest.mark.parametrize(
    ("options", "matching", "keys"),
    [
        ({"color": "navy blue"}, "fixed", ["blue"]),
        ({"color": "navy blue"}, "parity", ["('color', 'navy blue')"]),
        ({"color": "red"}, "parity", ["red"]),  # the value is a colour as it stands
        ({"color": "peppermint"}, "fixed", ["mint"]),
        (("navy blue", "12 oz"), "parity", ["blue", "12 oz"]),  # a human goal's options have no names
    ],
)
def test_goal_option_keys(options, matching, keys):
    assert goal_option_keys(goal(options=options), matching) == keys


def test_parity_misses_a_colour_inside_a_word():
    """The chosen `peppermint` becomes `mint`, which is no token of the goal's pair (scent, peppermint)."""
    wanted = goal(options={"scent": "peppermint"})
    assert option_matches(["peppermint"], goal_option_keys(wanted, "parity")) == 0
    assert option_matches(["peppermint"], goal_option_keys(wanted, "fixed")) == 1
    # `navy blue` becomes `blue`, which is a token of ('color', 'navy blue').
    assert option_matches(["navy blue"], goal_option_keys(goal(options={"color": "navy blue"}), "parity")) == 1


def test_one_choice_may_match_several_wishes():
    assert option_matches(["red large"], ["red", "large", "red large"]) == 2  # it became `red` first
    assert option_matches(["12 oz cup"], ["12 oz", "cup", "16 oz"]) == 2


WORDS = st.sampled_from(["red", "navy blue", "12 oz", "hand made", "stone", "mug", "", "lead free", "x-large", "é"])


@given(
    attributes=st.lists(WORDS, min_size=1, max_size=4),
    wanted=st.dictionaries(WORDS, WORDS, max_size=3) | st.lists(WORDS, max_size=3).map(tuple),
    chosen=st.dictionaries(WORDS, WORDS, max_size=3),
    nouns=st.lists(WORDS, max_size=4),
    goal_nouns=st.lists(WORDS, max_size=12),
    price=st.floats(0, 2000),
    matching=st.sampled_from(["parity", "fixed"]),
)
def test_reward_is_between_0_and_1(attributes, wanted, chosen, nouns, goal_nouns, price, matching):
    worth = score(
        product(), nouns, price, chosen, goal(attributes=tuple(attributes), options=wanted), goal_nouns, matching
    )
    assert 0.0 <= worth <= 1.0
