"""What prompts and responses of the environments have in common."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs import alfworld, webshop
from envs.base import TURN_LINE, Decision
from envs.wording import numbered_prompt_parts, parse_tagged_action, tagged_response

TASK = "Your task is to: put a mug in desk."


@pytest.mark.parametrize("environment", [alfworld.AlfworldEnvironment, webshop.WebshopEnvironment])
def test_the_tagged_environments(environment):
    assert environment.parse_action("<think>a</think><action>Look</action>") == ("look", True)
    assert environment.response_text is tagged_response


def test_what_is_kept_of_a_response_without_tags():
    response = "I would rather go to the SINKBASIN 1 and wait"
    assert alfworld.AlfworldEnvironment.parse_action(response) == ("go to the sinkbasin 1 and wait", False)  # 30
    assert webshop.WebshopEnvironment.parse_action(response) == ("sinkbasin 1 and wait", False)  # 20


@pytest.mark.parametrize(
    ("response", "action", "is_valid"),
    [
        ("<think>a</think><action>look</action>", "look", True),
        ("<think>a</think><action>search[red mugs]</action>", "search[red mugs]", True),
        ("<think>a</think><action>  Go To Desk 1 \n</action>", "go to desk 1", True),
        ("<think>a</think><action>  Click[Buy Now] \n</action>", "click[buy now]", True),
        ("<think>a</think><ACTION>look</Action>", "look", True),  # action tags in any case
        ("<think>a</think><ACTION>click[< Prev]</Action>", "click[< prev]", True),
        ("<THINK>a</think><action>look</action>", "look", False),  # think tags only as written
        ("<think>a<action>look</action>", "look", False),
        ("a</think><action>look</action>", "look", False),
        ("<action>look</action> <think>late</think>", "look", True),
        ("<think>a</think><action>look</action><action>help</action>", "look", True),  # the first of each tag
        ("<think>a</think><action>look <action>help</action>", "look <action>help", True),
        ("<think>a</think><action></action>", "", True),
        ("<think>a</think></action>look<action>", "", True),  # nothing stands between them
        ("<think>a</think><action>fly to the moon</action>", "fly to the moon", True),  # admissible or not
        # without both tags the last 30 characters
        ("<think>a</think><action>Examine The Green Cup 123456", "n>examine the green cup 123456", False),
        ("<think>a</think> GO TO DESK 1</action>", "</think> go to desk 1</action>", False),
        ("<think>a</think> Click[Description] and then Buy", "lick[description] and then buy", False),
        ("x" * 40 + "GO TO THE SINKBASIN 1 AND WAIT", "go to the sinkbasin 1 and wait", False),
        ("Look", "look", False),
        ("", "", False),
        ("<think>桌</think><action>look</action>", "look", False),
        ("<think>\u4e00</think><action>look</action>", "look", False),
        ("<think>\u9fff</think><action>look</action>", "look", False),
        ("<think>a</think><action>click[\u9fff]</action>", "click[\u9fff]", False),
        ("<think>\u4dff \ua000 é</think><action>look</action>", "look", True),  # just outside the CJK range
    ],
)
def test_parse_tagged_action(response, action, is_valid):
    assert parse_tagged_action(response) == (action, is_valid)


@given(
    st.text() | st.lists(st.sampled_from(["<think>", "</think>", "<action>", "</action>", "Look ", "桌"])).map("".join)
)
def test_parse_tagged_action_never_raises(text):
    action, is_valid = parse_tagged_action(text)
    assert action == action.lower()
    if not is_valid:
        return
    assert "<think>" in text
    assert "</think>" in text
    assert "<action>" in text.lower()
    assert "</action>" in text.lower()


def test_responses_parse_back():
    decision = Decision("click[< prev]", "another item.")
    assert tagged_response(decision) == "<think>another item.</think><action>click[< prev]</action>"
    assert parse_tagged_action(tagged_response(decision)) == ("click[< prev]", True)


def test_history_length_zero_shows_no_history():
    parts = numbered_prompt_parts("role", "turn", "task", [("seen", "look")], "now", ["look"], 0)
    assert (parts.history_header, parts.history) == ("", ())
    assert parts.current == "You are now at step 2. Current observation: now"


def test_first_prompt_has_no_history():
    parts = alfworld.prompt_parts(TASK, [], "You see a desk 1.", ["go to desk 1", "look"], 5)
    assert (parts.history_header, parts.history) == ("", ())
    assert parts.task == TASK
    assert parts.current == "You are now at step 1. Current observation: You see a desk 1."
    assert parts.actions == "Admissible actions:\ngo to desk 1\nlook"
    assert parts.turn.startswith(TURN_LINE)
    assert "<think> </think>" in parts.turn
    assert "<action> </action>" in parts.turn


def test_prompt_shows_the_last_steps_oldest_first():
    history = [("seen one", "go to desk 1"), ("seen two", "look"), ("seen three", "inventory")]
    parts = alfworld.prompt_parts(TASK, history, "now", ["look"], 2)
    assert parts.history_header == "Steps taken so far: 3. Your latest observations and actions:"
    assert parts.history == (
        "Step 2, observation: seen two\nStep 2, action: look",
        "Step 3, observation: seen three\nStep 3, action: inventory",
    )
    assert parts.current == "You are now at step 4. Current observation: now"


def test_webshops_prompt_leaves_the_instruction_out_of_the_pages():
    page = "Instruction: [SEP] Find me mugs [SEP] "
    history = [(f"{page}Search", "search[mugs]"), (f"{page}Back to Search", "click[b1]"), ("bare", "jump")]
    parts = webshop.prompt_parts("Your task is to: Find me mugs", history, f"{page}Buy Now", ["click[buy now]"], 2)
    assert parts.history_header == "Steps taken so far: 3. Your latest observations and actions:"
    assert parts.history == (
        "Step 2, observation: Back to Search\nStep 2, action: click[b1]",
        "Step 3, observation: bare\nStep 3, action: jump",
    )
    assert parts.current == "You are now at step 4. Current observation: Buy Now"
