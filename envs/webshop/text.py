"""What WebShop's policy reads and writes: the parts of a prompt, and the action in a response."""

from __future__ import annotations

from collections.abc import Sequence

from envs.base import PromptParts
from envs.webshop.pages import SEPARATOR
from envs.wording import (
    NUMBERED_PHRASES,
    TAGGED_PHRASES,
    TAGGED_TURN,
    numbered_prompt_parts,
    parse_tagged_action,
    tagged_response,
)

TASK_LINE = "Your task is to: "
SEARCH_ACTION = "search[<your query>]"
"""How the admissible actions spell a search; the policy puts its own words in."""
_ROLE = "You are a customer of WebShop, an online shop of pages."
FIXED_PHRASES = (
    _ROLE,
    TAGGED_TURN,
    TASK_LINE.strip(),
    *NUMBERED_PHRASES,
    *TAGGED_PHRASES,
    SEARCH_ACTION,
    "search[",
    "click[",
    "click[search]",
    "click[back to search]",
    "click[< prev]",
    "click[next >]",
    "click[description]",
    "click[features]",
    "click[reviews]",
    "click[buy now]",
    " [SEP] Description [SEP] Features [SEP] Reviews [SEP] Buy Now",
    "Back to Search [SEP] ",
    "< Prev [SEP] ",
    "Next > [SEP] ",
    " [SEP] ",
    "Page ",
    " (Total results: ",
    " [SEP] Price: $",
    " [SEP] Rating: ",
    " [SEP] $",
    "and price lower than",
    "dollars",
)
"""Wording that never changes, of the prompt's parts below, of the responses and of the pages."""

response_text = tagged_response


def parse_action(response_text: str) -> tuple[str, bool]:
    """See `envs.wording.parse_tagged_action`; of a response without tags the last 20 characters, as in the released
    code."""
    return parse_tagged_action(response_text, untagged_characters=20)


def prompt_parts(
    task_text: str,
    history: Sequence[tuple[str, str]],
    observation: str,
    admissible_actions: Sequence[str],
    history_length: int,
) -> PromptParts:
    """See `envs.wording.numbered_prompt_parts`. Each page begins with the instruction; as the task's line states it
    already, the observations are shown without it."""
    seen = [(_without_instruction(page, task_text), action) for page, action in history]
    page = _without_instruction(observation, task_text)
    return numbered_prompt_parts(_ROLE, TAGGED_TURN, task_text, seen, page, admissible_actions, history_length)


def _without_instruction(observation: str, task_text: str) -> str:
    instruction = task_text.removeprefix(TASK_LINE)
    return observation.removeprefix(f"Instruction:{SEPARATOR}{instruction}{SEPARATOR}")
