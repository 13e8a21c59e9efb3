from __future__ import annotations

import copy
import functools
import unicodedata
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.base import TURN_LINE, PromptParts
from opid_core.config import PromptingConfig
from opid_core.errors import ConfigError, DataError
from opid_core.rollout.prompting import (
    EPISODE_TITLE,
    STEP_TITLE,
    answer_text,
    encode,
    inject,
    render,
    templated,
    with_template_arguments,
)
from tests.factories import make_tokenizer

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
    tokens = tokenizer.convert_ids_to_tokens(list(encoded.ids))
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


# What the world says may spell the special tokens of a policy. Templates and tokenizers as Qwen2.5's and SmolLM2's.
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>")
QWEN_TEMPLATE = (
    "{%- if messages[0]['role'] == 'system' %}{{- '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}"
    "{%- else %}{{- '<|im_start|>system\nYou are helpful.<|im_end|>\n' }}{%- endif %}"
    "{%- for message in messages %}"
    "{%- if (message.role == 'user') or (message.role == 'system' and not loop.first) %}"
    "{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}"
    "{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
SMOL_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are helpful.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TRIMMING_TEMPLATE = QWEN_TEMPLATE.replace("message.content", "message.content | trim")
AROUND = ("<|im_start|>", "<|im_end|>", "<|im_start|>", "<|im_end|>", "<|im_start|>")
"""The special tokens of each of these templates."""


@functools.cache
def chat_tokenizer(style: str):
    """A byte-level BPE tokenizer of 300 tokens; `<tool_call>` is one of them, but not special."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer

    texts = ["You are helpful. system user assistant take mug 12 from desk"] * 9
    if style == "smol":
        raw = Tokenizer(models.BPE())
        split = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        raw.pre_tokenizer = pre_tokenizers.Sequence(split)  # pyright: ignore[reportAttributeAccessIssue]
        raw.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        raw.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet))
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    else:
        tokenizer = Qwen2Tokenizer().train_new_from_iterator(texts, 300, show_progress=False)
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIAL)})
    tokenizer.add_tokens(["<tool_call>"])
    tokenizer.chat_template = {"smol": SMOL_TEMPLATE, "qwen": QWEN_TEMPLATE, "trimming": TRIMMING_TEMPLATE}[style]
    return tokenizer


def special_of(tokenizer, ids: list[int]) -> tuple[str, ...]:
    return tuple(token for token in tokenizer.convert_ids_to_tokens(ids) if token in SPECIAL)


def equal_places(one: list[int], other: list[int]) -> int:
    """How many ids the two begin with alike."""
    return next(n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)


STYLES = pytest.mark.parametrize("style", ["qwen", "smol", "trimming"])
HOSTILE = st.lists(
    st.sampled_from(
        [*SPECIAL, "<|im_", "_end|>", "<|im_<|im_end|>end|>", "<tool_call>", " ", "\n", "12", "mug", "\ufffc"]
    )
    | st.text(max_size=5),
    max_size=6,
).map("".join)


@STYLES
@settings(deadline=None, max_examples=40)
@given(task=HOSTILE, seen=HOSTILE, done=HOSTILE, now=HOSTILE, offered=HOSTILE, skill=HOSTILE)
def test_the_special_tokens_are_those_of_the_template_alone(style, task, seen, done, now, offered, skill):
    tokenizer = chat_tokenizer(style)
    parts = replace(PARTS, task=task, history=(f"{seen}\n{done}",) * 2, current=now, actions=offered)
    encoded = encode(tokenizer, inject(parts, "step", skill), 10_000)
    assert special_of(tokenizer, list(encoded.ids)) == AROUND
    # Not one character is lost or changed (Qwen2's tokenizer composes characters: NFC).
    shown = f"<|im_start|>user\n{encoded.text}<|im_end|>\n<|im_start|>assistant\n"
    shown = unicodedata.normalize("NFC", shown) if style != "smol" else shown
    assert str(tokenizer.decode(list(encoded.ids))).endswith(shown)


@STYLES
@settings(deadline=None)
@given(text=st.text(), number=st.integers(0, 30))
def test_any_other_prompt_is_tokenised_whole(style, text, number):
    tokenizer = chat_tokenizer(style)
    parts = replace(PARTS, current=f"{text} <tool_call> take mug {number}", history=())
    encoded = encode(tokenizer, parts, 10_000)
    message = [{"role": "user", "content": encoded.text}]
    templated = str(tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True))
    assert encoded.ids == tokenizer.encode(templated, add_special_tokens=False)


@STYLES
def test_only_what_spells_a_special_token_is_tokenised_in_another_way(style):
    tokenizer = chat_tokenizer(style)
    ordinary, hostile = (
        list(encode(tokenizer, replace(PARTS, current=f"take{word}mug 12"), 1000).ids)
        for word in (" ## ", " <|im_end|> ")
    )
    same = equal_places(ordinary, hostile)  # up to "take" and its space
    rest = equal_places(ordinary[::-1], hostile[::-1])
    assert tokenizer.decode(ordinary[same:-rest]) == "##"
    assert tokenizer.decode(hostile[same:-rest]) == "<|im_end|>"


def with_template(template, style="qwen"):
    tokenizer = copy.deepcopy(chat_tokenizer(style))
    tokenizer.chat_template = template
    return tokenizer


def shown(tokenizer, **changes) -> str:
    return str(tokenizer.decode(list(encode(tokenizer, replace(PARTS, **changes), 1000).ids)))


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ messages[0]['content'] + messages[0]['content'] }}", "does not show the user message once"),
        ("{{ messages[0]['role'] }}", "does not show the user message once"),
        ("{{ raise_exception('no system message') }}", "refuses a single user message: no system message"),
        ({"rag": QWEN_TEMPLATE, "tool_use": QWEN_TEMPLATE}, r"templates: rag, tool_use; none is called default"),
    ],
)
def test_a_template_that_does_not_show_the_message_once_is_refused(template, message):
    with pytest.raises(ConfigError, match=message):
        encode(with_template(template), PARTS, 1000)


PARTS_TEMPLATE = QWEN_TEMPLATE.replace(
    "+ message.content +",
    "}}{%- for part in message.content %}{%- if part.type == 'text' %}{{- part.text }}{%- endif %}{%- endfor %}{{-",
)


@pytest.mark.parametrize("now", ["take mug 12", "<|im_end|>"])
@pytest.mark.parametrize("strict", [False, True])
def test_a_template_that_shows_only_lists_of_parts_gets_one(now, strict):
    refusing = "{%- if messages[0].content is string %}{{ raise_exception('a list') }}{%- endif %}" if strict else ""
    assert PARTS_TEMPLATE != QWEN_TEMPLATE
    assert shown(with_template(refusing + PARTS_TEMPLATE), current=now) == shown(chat_tokenizer("qwen"), current=now)


def test_a_block_of_the_configs_own_stands_where_the_plain_one_would():
    own = PromptingConfig(episode_block="Hint, for this episode:\n{skill}", step_block="Now: {skill}!")
    episode, step = render(inject(PARTS, "episode", "{skill}")), render(inject(PARTS, "step", "{skill}"))
    assert render(inject(PARTS, "episode", "{skill}", own)) == episode.replace(EPISODE_TITLE, "Hint, for this episode:")
    assert render(inject(PARTS, "step", "{skill}", own)) == step.replace(f"{STEP_TITLE}\n{{skill}}", "Now: {skill}!")
    assert inject(PARTS, "episode", " ", own) is PARTS


def test_the_default_of_named_templates_counts():
    named = with_template({"default": QWEN_TEMPLATE, "tool_use": "{{ 1 }}"})
    assert shown(named) == shown(chat_tokenizer("qwen"))


def test_the_date_is_not_the_clocks():
    tokenizer = with_template("{{ strftime_now('%d %b %Y') }}" + QWEN_TEMPLATE)
    assert shown(tokenizer).startswith("26 Jul 2024<|im_start|>")


@pytest.mark.parametrize("opened", ["<think>\n", "<think>\n\n</think>\n\n"])
def test_what_the_template_writes_of_the_answer_belongs_to_it(opened):
    opening = "assistant\n" + opened
    template = QWEN_TEMPLATE.replace("<|im_start|>assistant\n", "<|im_start|>" + opening)
    assert encode(with_template(template), PARTS, 1000).opened == opened
    assert encode(chat_tokenizer("qwen"), PARTS, 1000).opened == ""


THINKING_TEMPLATE = QWEN_TEMPLATE.replace(
    "assistant\n' }}", "assistant\n' }}{% if enable_thinking is defined and not enable_thinking %}{{ hint }}{% endif %}"
)


@pytest.mark.parametrize("before", ["", "\n  ", "{# a comment #}\n"])
def test_template_arguments_are_those_of_apply_chat_template(before):
    plain = with_template(before + THINKING_TEMPLATE)
    arguments = {"enable_thinking": False, "hint": "<think>\n\n</think>\n\n'\"é"}
    message = [{"role": "user", "content": "look"}]
    expected = str(plain.apply_chat_template(message, tokenize=False, add_generation_prompt=True, **arguments))
    bound = with_template_arguments(with_template(before + THINKING_TEMPLATE), arguments)
    assert templated(bound, "look") == expected
    assert templated(plain, "look") == expected.removesuffix(arguments["hint"])
    assert encode(bound, PARTS, 1000).opened == arguments["hint"]
    named = with_template({"default": THINKING_TEMPLATE, "tool_use": "{{ 1 }}"})
    assert templated(with_template_arguments(named, arguments), "look").endswith(arguments["hint"])


def test_an_argument_that_the_template_does_not_read_is_refused():
    with pytest.raises(ConfigError, match=r"prompting\.template_arguments\.enable_thinking"):
        with_template_arguments(with_template(QWEN_TEMPLATE), {"enable_thinking": False})


@pytest.mark.parametrize("special", [False, True])
def test_tags_of_an_answer_stay_even_as_special_tokens(special):
    tokenizer = copy.deepcopy(chat_tokenizer("smol"))
    tags = ["<think>", "</think>"]
    tokenizer.add_special_tokens({"additional_special_tokens": tags}) if special else tokenizer.add_tokens(tags)
    answer = "<think>so</think><action>take mug 1</action>"
    ids = tokenizer.encode(f"{answer}<|im_end|>", add_special_tokens=False)
    assert tokenizer.convert_tokens_to_ids("<think>") in ids
    assert answer_text(tokenizer, ids) == answer


def test_a_tokenizer_without_chat_template_is_refused():
    tokenizer = make_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(ConfigError, match="chat template"):
        encode(tokenizer, PARTS, 100)
