"""The gates on tables as WebShop and search write them: actions with a free text, and no list of actions in search."""

from __future__ import annotations

import math

import pytest

from tasks.gates.knowledge import FALSE_ALARMS
from tests.factories import Rows, valid_rows
from tests.tasks.gates.gated import checked, warnings

QUOTED = [("column_values_to_be_between", "written_words")]
KNOWN = [("column_values_to_be_between", "evidence")]
QUERY = "which port city did the founder of the northern lamp guild live in"
"""12 words; a thought before the search has them too."""
SEARCH = f"<think>Nobody told me yet who founded it, so let me search {QUERY}.</think><search>{QUERY}</search>"
ASKED = "women's long sleeve cotton tunic in navy blue, size small, machine wash"
SHOPPED = f"<think>What the shopper wants is surely best found with {ASKED}.</think><action>search[{ASKED}]</action>"
WORLDS = {
    "search_qa": (SEARCH, f"<search>{QUERY}</search>", f"Do now: search: {QUERY}"),
    "webshop": (SHOPPED, f"search[{ASKED}]", f"Plan: search[{ASKED}], click[buy now]"),
}
"""A response, its action, and a skill that names the action as hindsight does."""


def played(world: str, *, turn: int = 0, is_valid: bool = True) -> Rows:
    """Valid rows in which the response of one step (of three; the last is the sibling's) is that world's."""
    rows = valid_rows()
    response, action, _ = WORLDS[world]
    rows["steps"][turn] |= {"response_text": response, "action": action, "is_valid": is_valid}
    return rows


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("turn", [0, 2])
def test_a_skill_may_name_an_action_though_the_thought_before_it_has_the_same_words(world, turn):
    rows = played(world, turn=turn)
    rows["steps"][0]["response_text"] = WORLDS[world][0]  # that of the trajectory whose skill it is
    rows["skills"][1]["text"] = WORLDS[world][2]
    assert warnings("skills", rows) == []


@pytest.mark.parametrize("world", WORLDS)
def test_a_malformed_response_has_no_action_to_name(world):
    rows = played(world, is_valid=False)
    rows["skills"][1]["text"] = WORLDS[world][2]
    assert warnings("skills", rows) == QUOTED


@pytest.mark.parametrize(
    ("world", "text"),
    [
        ("search_qa", f"Nobody told me yet who founded it, so let me search: {QUERY}"),
        ("search_qa", "Remember: nobody told me yet who founded it, so let me ask."),
        ("webshop", "What the shopper wants is surely best found with care."),
    ],
)
def test_a_thought_that_is_repeated_is_a_quotation(world, text):
    rows = played(world)
    rows["skills"][1]["text"] = text
    assert warnings("skills", rows) == QUOTED


@pytest.mark.parametrize(("is_valid", "expected"), [(True, []), (False, QUOTED)])
def test_the_words_of_an_action_are_no_part_of_a_quotation(is_valid, expected):
    rows = valid_rows()
    said = "So I go to shelf 2 and take mug 1 from it."  # 12 words, 6 of them in a row are left without the action
    rows["steps"][0] |= {"response_text": said, "action": "go to shelf 2", "is_valid": is_valid}
    rows["skills"][1]["text"] = said
    assert warnings("skills", rows) == expected


def moved(delta: float, action: str, offered: list[str]) -> Rows:
    """Valid rows; the one response under a step skill (2 tokens, of 3 steps in all) is moved by `delta` nats."""
    rows = valid_rows()
    rows["scores"][0] |= {"old_log_probs": [-22.0, -22.0], "skill_log_probs": [-22.0 + delta / 2] * 2}
    rows["steps"][0] |= {"action": action, "admissible_actions": offered}
    return rows


PAGE = ["click[back to search]", "click[< prev]", "click[small]", "click[navy]", "click[buy now]"]
"""A product's page of WebShop."""


def test_of_webshop_clicks_count_by_what_the_page_has_and_searches_do_not():
    at = math.log(5 * 3 / FALSE_ALARMS)  # exp(delta) / 5 clicks / 3 steps is 1,000
    assert warnings("scores", moved(at - 0.01, "click[buy now]", PAGE)) == []
    assert warnings("scores", moved(at + 0.01, "click[buy now]", PAGE)) == KNOWN
    # a page with a search bar offers a blank: whoever fills it takes one of more actions than can be counted
    assert warnings("scores", moved(31.0, f"search[{ASKED}]", ["search[<your query>]"])) == []
    # a click beside it counts, by K that is one too many: the bound holds, since searches add nothing to the sum
    beside = [*PAGE[:4], "search[<your query>]"]
    assert warnings("scores", moved(at - 0.01, "click[navy]", beside)) == []
    assert warnings("scores", moved(at + 0.01, "click[navy]", beside)) == KNOWN


def test_of_search_nothing_counts_since_no_action_is_on_offer():
    for action in (f"<search>{QUERY}</search>", "<answer>Tavi Omen</answer>"):
        assert warnings("scores", moved(31.0, action, [])) == []
    # delta itself is there all the same, and a token that moves by more than 20 nats is told
    (warning,) = checked("scores", moved(42.0, "<answer>Tavi Omen</answer>", [])).warnings
    assert (warning.column, warning.failing_rows[0]["max_skill_delta"]) == ("max_skill_delta", 21.0)
