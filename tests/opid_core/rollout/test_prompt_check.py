"""What a first prompt and an answer to it tell of a policy's tokenizer, with ALFWorld's small games."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest

from envs.base import make
from opid_core.config import build_config
from opid_core.errors import ConfigError, DataError
from opid_core.rollout.prompt_check import check_prompt
from tests.flows.cli.test_cli import SMALL
from tests.opid_core.rollout.test_prompting import QWEN_TEMPLATE, chat_tokenizer

THINKING = QWEN_TEMPLATE.replace("<|im_start|>assistant\n", "<|im_start|>assistant\n<think>\n")


@functools.cache
def world() -> tuple[Any, Any]:
    environment = make("alfworld", SMALL["environment"]["options"])
    return environment, environment.tasks("valid_unseen")[0]


def checked(
    template: str, special: tuple[str, ...] = (), limit: int = 4000, edit=lambda tokenizer: None, **config: Any
) -> str:
    tokenizer = copy.deepcopy(chat_tokenizer("qwen"))
    tokenizer.chat_template = template
    tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    edit(tokenizer)
    rollout = {"rollout": {**SMALL["rollout"], "max_prompt_tokens": limit}}
    return check_prompt(tokenizer, *world(), build_config({**SMALL, **rollout, **config}))


@pytest.mark.parametrize("template", [QWEN_TEMPLATE, THINKING])
@pytest.mark.parametrize("special", [(), ("<think>", "</think>"), ("<action>",)])
def test_the_prompt_is_shown_whole(template, special):
    text = checked(template, special)
    assert text.startswith("<|im_start|>system\nYou are helpful.<|im_end|>\n<|im_start|>user\nYou are ")
    assert text.endswith("<|im_start|>assistant\n<think>\n" if template == THINKING else "<|im_start|>assistant\n")
    assert text.count("Admissible actions:") == 1


def test_an_answer_that_does_not_come_back_is_refused():
    def lower_case(tokenizer) -> None:
        from tokenizers import normalizers

        tokenizer.backend_tokenizer.normalizer = normalizers.Replace("<action>", "action ")

    with pytest.raises(ConfigError, match=r"does not keep an answer in the asked form: '<think>.*comes back as"):
        checked(QWEN_TEMPLATE, edit=lower_case)


def test_a_template_that_changes_the_message_is_refused():
    with pytest.raises(ConfigError, match="shows the user message 0 times"):
        checked(QWEN_TEMPLATE.replace("message.content", "message.content | upper"))


def test_a_first_prompt_beyond_the_limit_is_refused():
    with pytest.raises(DataError, match="max_prompt_tokens is 20"):
        checked(QWEN_TEMPLATE, limit=20)


def test_a_placebo_that_names_an_action_on_offer_needs_a_world_that_lists_them():
    questions = make("search_qa", {"generator": {"passages": 60, "train": 4, "valid_unseen": 4}})
    method = {"name": "opid", "placebo_step": "random_action"}
    config = build_config({**SMALL, "environment": {"name": "search_qa", "max_steps": 4}, "method": method})
    with pytest.raises(ConfigError, match=r"method\.placebo_step: random_action .* search_qa lists none"):
        check_prompt(chat_tokenizer("qwen"), questions, questions.tasks("train")[0], config)


def test_a_conversation_needs_a_template_that_shows_earlier_answers():
    chat = {"policy": "folder", "prompting": {"style": "chat"}}
    whole = QWEN_TEMPLATE.replace("(message.role == 'user')", "(message.role in ('user', 'assistant'))")
    assert checked(whole, **chat) == checked(whole)
    with pytest.raises(ConfigError, match=r"prompting\.style: the policy's chat template changes earlier answers"):
        checked(whole.replace("message.content +", "message.content.split('</think>')[-1] +"), **chat)
