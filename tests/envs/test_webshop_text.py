"""What WebShop's policy reads (what it writes: `test_wording.py`)."""

from __future__ import annotations

from envs.base import TURN_LINE
from envs.webshop import prompt_parts

INSTRUCTION = "Find me mugs with color: red, and price lower than 20.00 dollars"
TASK = f"Your task is to: {INSTRUCTION}"
PAGE = f"Instruction: [SEP] {INSTRUCTION} [SEP] "


def test_first_prompt_has_no_history():
    parts = prompt_parts(TASK, [], f"{PAGE}Search", ["search[<your query>]", "click[search]"], 2)
    assert (parts.history_header, parts.history) == ("", ())
    assert parts.task == TASK
    assert parts.current == "You are now at step 1. Current observation: Search"
    assert parts.actions == "Admissible actions:\nsearch[<your query>]\nclick[search]"
    assert parts.turn.startswith(TURN_LINE)
    assert "<think> </think>" in parts.turn
    assert "<action> </action>" in parts.turn


def test_prompt_shows_the_last_steps_without_the_instruction():
    history = [(f"{PAGE}Search", "search[mugs]"), (f"{PAGE}Back to Search", "click[b1]"), ("bare", "jump")]
    parts = prompt_parts(TASK, history, f"{PAGE}Buy Now", ["click[buy now]"], 2)
    assert parts.history_header == "Steps taken so far: 3. Your latest observations and actions:"
    assert parts.history == (
        "Step 2, observation: Back to Search\nStep 2, action: click[b1]",
        "Step 3, observation: bare\nStep 3, action: jump",
    )
    assert parts.current == "You are now at step 4. Current observation: Buy Now"
