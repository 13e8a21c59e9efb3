"""A first prompt as the policy will get it, and an answer to it, before any work is done."""

from __future__ import annotations

import re
from typing import Any

from envs.base import Environment, HasExpert, Task, result_of
from opid_core.config import CampaignConfig
from opid_core.errors import ConfigError
from opid_core.rollout.conversation import check_conversation
from opid_core.rollout.prompting import answer_text, encode, templated


def check_prompt(tokenizer: Any, environment: Environment, task: Task, config: CampaignConfig) -> str:
    """The text of the first prompt of `task`, chat template and all.

    Raises ConfigError unless the user message stands in it once, the template can go on with a conversation where the
    config asks for one, an answer as the environment's expert writes it is read as such after it was tokens, and the
    world lists the actions of which a placebo is drawn; DataError for a prompt that is too long.
    """
    observation = result_of(environment.reset(task))
    offered = list(environment.admissible_actions)
    if not offered and getattr(config.method, "placebo_step", None) == "random_action":
        raise ConfigError(
            f"method.placebo_step: random_action draws from the actions on offer, and {config.environment.name} lists "
            "none; take swapped or fixed"
        )
    parts = environment.prompt_parts(environment.task_text, [], observation, offered, config.environment.history_length)
    prompt = encode(tokenizer, parts, config.rollout.max_prompt_tokens)
    if config.prompting.style == "chat":
        check_conversation(tokenizer, str(tokenizer.chat_template))
    text = templated(tokenizer, prompt.text)
    if (count := text.count(prompt.text.strip())) != 1:
        raise ConfigError(
            f"the policy's chat template shows the user message {count} times as it is, not once: use another"
        )
    if isinstance(environment, HasExpert):
        asked = environment.response_text(environment.expert(observation).decide(offered))
        written = asked
        for tag in re.findall("</?think>", prompt.opened):
            written = written.partition(tag)[2]  # the template writes it
        read = prompt.opened + answer_text(tokenizer, tokenizer.encode(written, add_special_tokens=False))
        if environment.parse_action(read) != environment.parse_action(asked):
            raise ConfigError(
                f"the policy's tokenizer does not keep an answer in the asked form: {asked!r} comes back as {read!r}"
            )
    return text
