from __future__ import annotations

import pytest

from envs.base import is_offered


@pytest.mark.parametrize(
    ("action", "offered"),
    [
        ("click[b01]", True),
        ("search[red balm]", True),
        ("search[a [b]\n(c)]", True),
        ("search[]", False),
        ("search[red balm", False),
        ("search[<your query>]", True),
        ("click[red balm]", False),
        ("", False),
    ],
)
def test_an_offer_with_a_blank_stands_for_all_that_fill_it(action, offered):
    assert is_offered(action, ["search[<your query>]", "click[b01]"]) is offered


def test_without_an_offer_nothing_is_offered():
    assert not is_offered("look", [])
    assert not is_offered("look around", ["look", "look.around"])
