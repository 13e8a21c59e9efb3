"""What the prompts and responses of the environments have in common (docs/environments.md)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from envs.base import TURN_LINE, Decision, PromptParts

TAGGED_TURN = (
    f"{TURN_LINE}. Reason step by step inside <think> </think>. "
    "Then choose one admissible action and write it inside <action> </action>."
)
FREE_TURN = (
    f"{TURN_LINE}. Reason step by step inside <think> </think>. Then write your action inside <action> </action>."
)
"""The turn where no actions are listed."""
NUMBERED_PHRASES = (
    "Steps taken so far:",
    "Your latest observations and actions:",
    ", observation:",
    ", action:",
    "You are now at step",
    "Current observation:",
)
"""Wording of `numbered_prompt_parts` that never changes, the list of actions aside."""
TAGGED_PHRASES = ("Admissible actions:", "<think>", "</think>", "<action>", "</action>")
"""Wording of that list and of `tagged_response`."""

_UNTAGGED_CHARACTERS = 30
_WRITTEN = re.compile("<action>(.*?)</action>", re.DOTALL | re.IGNORECASE)
_CJK = re.compile("[\u4e00-\u9fff]")


def parse_tagged_action(response_text: str, untagged_characters: int = _UNTAGGED_CHARACTERS) -> tuple[str, bool]:
    """The action in a response, lower case, and whether the response is well-formed (docs/alfworld.md).

    The action is what stands between the first `<action>` and the first `</action>`, else the last
    `untagged_characters`.
    Well-formed needs both action tags (nothing stands between them where they are the wrong way round), `<think>` and
    `</think>` as written, and no CJK character. Whether the world admits the action plays no part.
    """
    lowered = response_text.lower()
    start, end = lowered.find("<action>"), lowered.find("</action>")
    if start < 0 or end < 0:
        return lowered[-untagged_characters:], False
    action = lowered[start + len("<action>") : end].strip()
    thinks = "<think>" in response_text and "</think>" in response_text
    return action, thinks and _CJK.search(response_text) is None


def parse_written_action(response_text: str) -> tuple[str, bool]:
    """As `parse_tagged_action`, but the action keeps its case: for worlds in which it matters."""
    block = _WRITTEN.search(response_text)
    if block is None:
        return response_text[-_UNTAGGED_CHARACTERS:], False
    return block[1].strip(), parse_tagged_action(response_text)[1]


def listed_or_free_turn(admissible_actions: Sequence[str]) -> str:
    """The last paragraph of a prompt: `TAGGED_TURN` where actions are listed, else `FREE_TURN`."""
    return TAGGED_TURN if admissible_actions else FREE_TURN


def tagged_response(decision: Decision) -> str:
    """The decision as `parse_tagged_action` reads it."""
    return f"<think>{decision.thought}</think><action>{decision.action}</action>"


def numbered_prompt_parts(
    role: str,
    turn: str,
    task_text: str,
    history: Sequence[tuple[str, str]],
    observation: str,
    admissible_actions: Sequence[str],
    history_length: int,
) -> PromptParts:
    """The prompt of step `len(history)` (0-based; the text counts from 1), with the last `history_length` steps.

    The first step has no history part. Admissible actions, where there are any, stand one a line, as the world spells
    them.
    """
    done = len(history)
    shown = list(enumerate(history, start=1))[max(done - history_length, 0) :]
    return PromptParts(
        role=role,
        task=task_text,
        history_header=f"Steps taken so far: {done}. Your latest observations and actions:" if shown else "",
        history=tuple(
            f"Step {number}, observation: {seen}\nStep {number}, action: {action}" for number, (seen, action) in shown
        ),
        current=f"You are now at step {done + 1}. Current observation: {observation}",
        actions="\n".join(["Admissible actions:", *admissible_actions]) if admissible_actions else "",
        turn=turn,
    )
