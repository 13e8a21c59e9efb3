from __future__ import annotations

from dataclasses import replace

import pytest

from envs.base import TURN_LINE, PromptParts
from opid_core.errors import ConfigError, DataError
from opid_core.prompting import EPISODE_TITLE, STEP_TITLE, encode, inject, render
from tests.tiny_policy import make_tokenizer

PARTS = PromptParts(
    role="you are in a room",
    task="put mug 1 in drawer 2",
    history_header="3 .",
    history=("go to desk 1", "take mug 1", "open drawer 2"),
    current="look",
    actions="close drawer 2",
    turn=f"{TURN_LINE}. go",
)
LINES = (
    "you are in a room",
    "put mug 1 in drawer 2",
    "3 .",
    "go to desk 1",
    "take mug 1",
    "open drawer 2",
    "look",
    "close drawer 2",
    "Now it's your turn. go",
)


def test_render_joins_non_empty_parts():
    assert render(PARTS) == "\n".join(LINES)
    first = replace(PARTS, history_header="", history=(), actions="")
    assert render(first) == "\n".join((*LINES[:2], LINES[6], LINES[8]))


def test_episode_skill_follows_the_task_line():
    expected = (*LINES[:2], "Episode skill:", "be quick", *LINES[2:])
    assert render(inject(PARTS, "episode", "be quick")) == "\n".join(expected)


def test_step_skill_precedes_the_turn_line():
    expected = (*LINES[:8], "Step skill:", "open it", LINES[8])
    assert render(inject(PARTS, "step", "open it")) == "\n".join(expected)


def test_without_a_task_line_the_turn_line_then_the_end():
    no_task = replace(PARTS, task="")
    assert render(inject(no_task, "episode", "s")).endswith(f"{EPISODE_TITLE}\ns\n{PARTS.turn}")
    nothing = replace(PARTS, task="", turn="")
    assert render(inject(nothing, "episode", "s")).endswith(f"{PARTS.actions}\n{EPISODE_TITLE}\ns")
    assert render(inject(nothing, "step", "s")).endswith(f"{PARTS.actions}\n{STEP_TITLE}\ns")


@pytest.mark.parametrize("kind", ["episode", "step"])
@pytest.mark.parametrize("blank", ["", "  \n"])
def test_an_empty_skill_leaves_the_prompt(kind, blank):
    assert inject(PARTS, kind, blank) is PARTS


def test_unknown_kind():
    with pytest.raises(DataError, match="'none' is none of episode, step"):
        inject(PARTS, "none", "s")  # pyright: ignore[reportArgumentType]


# The tokenizer has one token a word; the template adds <user> and <assistant>: 2 + 32 words for the whole prompt.
WHOLE = 34


def count(*lines: str) -> int:
    return sum(len(line.split()) for line in lines)


def test_encode_applies_the_chat_template():
    tokenizer = make_tokenizer()
    encoded = encode(tokenizer, PARTS, WHOLE)
    assert count(*LINES) + 2 == WHOLE
    assert encoded.text == render(PARTS)
    assert (len(encoded.ids), encoded.history_dropped) == (WHOLE, 0)
    tokens = tokenizer.convert_ids_to_tokens(encoded.ids)
    assert (tokens[0], tokens[1], tokens[-1]) == ("<user>", "you", "<assistant>")


@pytest.mark.parametrize(
    ("limit", "dropped"),
    [
        (WHOLE - 1, 1),  # go to desk 1: 4 tokens
        (WHOLE - 4, 1),
        (WHOLE - 5, 2),  # take mug 1: 3 more
        (WHOLE - 7, 2),
        (WHOLE - 8, 3),  # open drawer 2 and the header: 5 more
        (WHOLE - 12, 3),
    ],
)
def test_the_oldest_history_goes_first(limit, dropped):
    encoded = encode(make_tokenizer(), PARTS, limit)
    assert encoded.history_dropped == dropped
    assert len(encoded.ids) <= limit
    kept = (*LINES[:2], *LINES[3 + dropped :]) if dropped == 3 else (*LINES[:3], *LINES[3 + dropped :])
    assert encoded.text == "\n".join(kept)


def test_task_skill_and_observation_always_stay():
    with pytest.raises(DataError, match=r"'put mug 1 in drawer 2': 22 tokens without any history, .* is 21"):
        encode(make_tokenizer(), PARTS, WHOLE - 13)
    skilled = inject(PARTS, "step", "open drawer 1")  # title and skill: 5 tokens
    encoded = encode(make_tokenizer(), skilled, WHOLE)
    assert encoded.history_dropped == 2
    assert "open drawer 1" in encoded.text
    assert encode(make_tokenizer(), skilled, WHOLE + 5).history_dropped == 0
    with pytest.raises(DataError, match="27 tokens without any history"):
        encode(make_tokenizer(), skilled, WHOLE - 12)
    exceeding = encode(make_tokenizer(), skilled, WHOLE - 12, may_exceed=True)
    assert (len(exceeding.ids), exceeding.history_dropped) == (27, 3)


def test_a_tokenizer_without_chat_template_is_refused():
    tokenizer = make_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(ConfigError, match="chat template"):
        encode(tokenizer, PARTS, 100)
