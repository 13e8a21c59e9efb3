"""What ALFWorld's policy reads and writes: the parts of a prompt, and the action in a response."""

from __future__ import annotations

from functools import partial

from envs.wording import (
    NUMBERED_PHRASES,
    TAGGED_PHRASES,
    TAGGED_TURN,
    numbered_prompt_parts,
    parse_tagged_action,
    tagged_response,
)

_ROLE = "You are an agent in a household, the text world ALFWorld."
FIXED_PHRASES = (
    _ROLE,
    TAGGED_TURN,
    "Your task is to:",
    *NUMBERED_PHRASES,
    *TAGGED_PHRASES,
    "You are in the middle of a room. Looking quickly around you, you see",
    "You arrive at",
    ", you see",
    "is open. In it",
    "is closed.",
    "Nothing happens.",
)
"""Wording that never changes, of the prompt's parts below, of the responses and of the world."""

parse_action = parse_tagged_action
response_text = tagged_response
prompt_parts = partial(numbered_prompt_parts, _ROLE, TAGGED_TURN)
