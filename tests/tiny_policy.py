"""A tiny random policy with a tiny tokenizer, as an HF folder, for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np

WORDS = "you are in a room go to take put open close look desk drawer shelf mug book lamp 1 2 3 . , :"
VOCABULARY = ["<pad>", "<eos>", "<user>", "<assistant>", "<unk>", *WORDS.split()]
EOS_ID = VOCABULARY.index("<eos>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<user> {{ message['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def make_tokenizer():
    """A word-level tokenizer with a chat template."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    model = models.WordLevel({word: index for index, word in enumerate(VOCABULARY)}, unk_token="<unk>")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        chat_template=CHAT_TEMPLATE,
    )


def make_tiny_policy_folder(folder: Path, *, seed: int = 0, max_positions: int = 256, scale: float = 4.0) -> Path:
    """Write a two-layer policy (width 64) and its tokenizer; `scale` sharpens the output so that log-probs differ."""
    import torch

    from opid_core.policies import make_tiny_policy

    tokenizer = make_tokenizer()
    model = make_tiny_policy(
        vocab_size=len(VOCABULARY), hidden_size=64, layers=2, heads=2, max_positions=max_positions, seed=seed
    )
    model.config.eos_token_id = EOS_ID
    model.config.pad_token_id = 0
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("weight") and parameter.dim() == 2:
                parameter.mul_(scale)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def random_tokens(generator: np.random.Generator, length: int) -> list[int]:
    """Token ids [length] without the special ones."""
    return generator.integers(5, len(VOCABULARY), size=length).tolist()
