"""From the parts of a prompt to its text and tokens, with a skill in it or not (ALGORITHM, section 5)."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from envs.base import PromptParts
from opid_core.errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

EPISODE_TITLE = "Episode skill:"
STEP_TITLE = "Step skill:"
"""The first lines of the two blocks; fixed, because policies are warm-started on them."""

_MARK = "\ufffc"
"""Stands for the message where the text that a chat template puts around it is wanted."""


@dataclass(frozen=True)
class EncodedPrompt:
    """`text` is the user message before the chat template, `ids` the tokens of the templated prompt, `history_dropped`
    the number of oldest history entries cut for length."""

    text: str
    ids: Sequence[int]
    history_dropped: int


def render(parts: PromptParts) -> str:
    """The user message: the non-empty parts in their order, joined by newlines."""
    lines = (
        parts.role,
        parts.task,
        parts.history_header,
        *parts.history,
        parts.current,
        parts.actions,
        parts.turn,
    )
    return "\n".join(line for line in lines if line)


def inject(parts: PromptParts, kind: Literal["episode", "step"], skill: str) -> PromptParts:
    """`parts` with the skill in a titled block: an episode skill right after the task line, a step skill right before
    the turn paragraph. Without a task line both go before the turn paragraph, without that to the end; a blank skill
    leaves the prompt byte for byte. Source: ALGORITHM, section 5.
    """
    if kind not in ("episode", "step"):
        raise DataError(f"kind of skill: {kind!r} is none of episode, step")
    if not skill.strip():
        return parts
    if kind == "episode" and parts.task:
        return replace(parts, task=f"{parts.task}\n{EPISODE_TITLE}\n{skill}")
    block = f"{EPISODE_TITLE if kind == 'episode' else STEP_TITLE}\n{skill}"
    return replace(parts, turn=f"{block}\n{parts.turn}" if parts.turn else block)


def drop_history(parts: PromptParts, count: int) -> PromptParts:
    """`parts` without its `count` oldest history entries; the header goes with the last of them."""
    history = parts.history[count:]
    return replace(parts, history=history, history_header=parts.history_header if history else "") if count else parts


def encode(
    tokenizer: PreTrainedTokenizerBase, parts: PromptParts, max_prompt_tokens: int, *, may_exceed: bool = False
) -> EncodedPrompt:
    """The prompt through the tokenizer's chat template (generation prompt added), in at most `max_prompt_tokens`.

    As few history entries as need be are dropped, oldest first; nothing else ever is. A prompt that does not fit even
    without history raises DataError, or is returned so if it `may_exceed` the limit (for scoring, where the limit is
    a matter of memory only). Raises ConfigError for a tokenizer without a chat template.
    """
    if not tokenizer.chat_template:
        raise ConfigError("the policy's tokenizer has no chat template: use an instruct model, or add one")
    whole = _encode(tokenizer, parts, 0)
    if len(whole.ids) <= max_prompt_tokens:
        return whole
    encoded = {0: whole}

    def fits(dropped: int) -> bool:
        if dropped not in encoded:
            encoded[dropped] = _encode(tokenizer, parts, dropped)
        return len(encoded[dropped].ids) <= max_prompt_tokens

    everything = len(parts.history)
    dropped = bisect.bisect_left(range(everything + 1), True, key=fits)
    if dropped > everything and may_exceed:
        return encoded[everything]
    if dropped > everything:
        raise DataError(
            f"prompt of task {parts.task!r}: {len(encoded[everything].ids)} tokens without any history, "
            f"max_prompt_tokens is {max_prompt_tokens}"
        )
    return encoded[dropped]


def _encode(tokenizer: PreTrainedTokenizerBase, parts: PromptParts, dropped: int) -> EncodedPrompt:
    """The prompt without its `dropped` oldest history entries; its special tokens are those of the template alone.

    A message that spells one (an item page may say `<|im_end|>`) is tokenised apart from the template, as ordinary
    text; any other prompt is tokenised whole.
    """
    text = render(drop_history(parts, dropped))
    templated = _templated(tokenizer, text)
    special = (token for token in tokenizer.added_tokens_decoder.values() if token.special)
    if not any(token.content in text or token.normalized for token in special):  # normalised: spelled in many ways
        return EncodedPrompt(text, _ids(tokenizer, templated), dropped)
    before, mark, after = _templated(tokenizer, _MARK).partition(_MARK)
    message = templated.removeprefix(before).removesuffix(after)  # as the template shows it: some trim it
    if not mark or f"{before}{message}{after}" != templated:
        raise ConfigError("the policy's chat template does not show the user message once, in one place: use another")
    message_ids = _ids(tokenizer, message, split_special_tokens=True)
    return EncodedPrompt(text, [*_ids(tokenizer, before), *message_ids, *_ids(tokenizer, after)], dropped)


def _templated(tokenizer: PreTrainedTokenizerBase, message: str) -> str:
    messages = [{"role": "user", "content": message}]
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


def _ids(tokenizer: PreTrainedTokenizerBase, text: str, *, split_special_tokens: bool = False) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False, split_special_tokens=split_special_tokens)
