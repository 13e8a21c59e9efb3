"""What the policy of search-based QA reads and writes: the parts of a prompt, the action in a response, and whether an
answer is right."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence

from envs.base import TURN_LINE, Decision, PromptParts
from envs.wording import NUMBERED_PHRASES, numbered_prompt_parts

TASK_LINE = "Your question is: "
FIRST_OBSERVATION = "Nothing searched yet."
NOTHING_DONE = "Nothing happens."
"""Observation of a response without a complete block."""
NO_PASSAGE = "No passage found."

_ROLE = "You are an agent that answers questions by searching a collection of passages."
_TURN = (
    f"{TURN_LINE}. Reason step by step inside <think> </think>. Then write exactly one of these: "
    "a query inside <search> </search>, or the final answer inside <answer> </answer>."
)
FIXED_PHRASES = (
    _ROLE,
    _TURN,
    TASK_LINE.strip(),
    *NUMBERED_PHRASES,
    FIRST_OBSERVATION,
    NOTHING_DONE,
    NO_PASSAGE,
    "<think>",
    "</think>",
    "<search>",
    "</search>",
    "<answer>",
    "</answer>",
    "<information>",
    "</information>",
)
"""Wording that never changes, of the prompt's parts below, of the responses and of the observations."""

_SEARCH_BLOCK = re.compile("<search>(.*?)</search>", re.IGNORECASE | re.DOTALL)
_ANSWER_BLOCK = re.compile("<answer>(.*?)</answer>", re.IGNORECASE | re.DOTALL)
_OPENING_TAG = re.compile("<search>|<answer>", re.IGNORECASE)


def parse_action(response_text: str) -> tuple[str, bool]:
    """The action in a response, in its tags, and whether the response is well-formed.

    The response is cut after the first `</search>`, else after the first `</answer>` (as written). The action is the
    first complete search block of what is left, else its first answer block (tags in any case), written
    `<search>query</search>` or `<answer>text</answer>` with the text stripped; else "". Well-formed needs an action,
    and in the whole response no more than one opening tag, of any case, of the two kinds together.
    Source: docs/search_qa.md.
    """
    cut = response_text
    for closing_tag in ("</search>", "</answer>"):
        if closing_tag in response_text:
            cut = response_text.partition(closing_tag)[0] + closing_tag
            break
    is_valid = len(_OPENING_TAG.findall(response_text)) == 1
    if block := _SEARCH_BLOCK.search(cut):
        return f"<search>{block[1].strip()}</search>", is_valid
    if block := _ANSWER_BLOCK.search(cut):
        return f"<answer>{block[1].strip()}</answer>", is_valid
    return "", False


def query_of(action: str) -> str | None:
    """The query of a search action; None for any other."""
    block = re.search("<search>(.*?)</search>", action, re.DOTALL)
    return block[1].strip() if block else None


def answer_of(action: str) -> str | None:
    """The answer in an action (the last one, should a search block hold some); None where there is none."""
    answers = re.findall("<answer>(.*?)</answer>", action, re.DOTALL)
    return answers[-1].strip() if answers else None


def information(passages: Sequence[str]) -> str:
    """The observation of a search: the passages' contents in their order, numbered from 1."""
    listed = [f"Doc {number}: {contents.strip()}" for number, contents in enumerate(passages, start=1)]
    return "\n".join(["<information>", *(listed or [NO_PASSAGE]), "</information>"])


def response_text(decision: Decision) -> str:
    """The decision as `parse_action` reads it."""
    return f"<think>{decision.thought}</think>{decision.action}"


def prompt_parts(
    task_text: str,
    history: Sequence[tuple[str, str]],
    observation: str,
    admissible_actions: Sequence[str],
    history_length: int,
) -> PromptParts:
    """See `envs.wording.numbered_prompt_parts`. There are no admissible actions to list: they are not used."""
    return numbered_prompt_parts(_ROLE, _TURN, task_text, history, observation, (), history_length)


_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalize_answer(text: str) -> str:
    """Lower case, without ASCII punctuation, then without articles, with single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, golden_answers: str | Sequence[str]) -> bool:
    """Whether `answer` equals one of `golden_answers` (or the only one) after normalisation."""
    accepted = [golden_answers] if isinstance(golden_answers, str) else golden_answers
    normalized = normalize_answer(answer)
    return any(normalize_answer(golden) == normalized for golden in accepted)
