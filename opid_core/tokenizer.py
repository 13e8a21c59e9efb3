"""A small byte-level BPE tokenizer with a chat template, made from an environment's own text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
END, PAD = "<|end|>", "<|pad|>"
_ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
LARGEST_NUMBER = 30
"""Numbers up to here (with the space before them) are one token each: entities are numbered."""


def train_tokenizer(texts: Iterable[str], phrases: Sequence[str], vocab_size: int, folder: Path) -> None:
    """Train a byte-level BPE on `texts` and save it under `folder` for `transformers.AutoTokenizer`.

    `phrases` (the fixed wording of prompts) become one token each, so that a tiny policy's context holds facts instead
    of boilerplate. Any text can still be encoded: the alphabet is all bytes.
    """
    from tokenizers import AddedToken
    from transformers import Qwen2Tokenizer

    # AutoTokenizer reads every tokenizer next to a Qwen2 model as this class, with this class's splitting of words.
    untrained = Qwen2Tokenizer(eos_token=END, pad_token=PAD, unk_token=END)
    tokenizer = untrained.train_new_from_iterator(
        texts, vocab_size, new_special_tokens=list(_ROLES), show_progress=False
    )
    whole = [*phrases, *(f" {number}" for number in range(1, LARGEST_NUMBER + 1))]
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in whole])
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
