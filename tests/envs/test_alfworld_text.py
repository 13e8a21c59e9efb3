"""What ALFWorld's policy reads (what it writes: `test_wording.py`)."""

from __future__ import annotations

from envs.alfworld import prompt_parts
from envs.base import TURN_LINE

TASK = "Your task is to: put a mug in desk."


def test_first_prompt_has_no_history():
    parts = prompt_parts(TASK, [], "You see a desk 1.", ["go to desk 1", "look"], 5)
    assert (parts.history_header, parts.history) == ("", ())
    assert parts.task == TASK
    assert parts.current == "You are now at step 1. Current observation: You see a desk 1."
    assert parts.actions == "Admissible actions:\ngo to desk 1\nlook"
    assert parts.turn.startswith(TURN_LINE)
    assert "<think> </think>" in parts.turn
    assert "<action> </action>" in parts.turn


def test_prompt_shows_the_last_steps_oldest_first():
    history = [("seen one", "go to desk 1"), ("seen two", "look"), ("seen three", "inventory")]
    parts = prompt_parts(TASK, history, "now", ["look"], 2)
    assert parts.history_header == "Steps taken so far: 3. Your latest observations and actions:"
    assert parts.history == (
        "Step 2, observation: seen two\nStep 2, action: look",
        "Step 3, observation: seen three\nStep 3, action: inventory",
    )
    assert parts.current == "You are now at step 4. Current observation: now"
