"""Trajectories as skills may tell of them: actions in words, answers left out, and which actions the world carried out.

All that is known of an environment here are its `ActionWords`.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Sequence

from envs.base import ActionWords, is_offered
from opid_core.samples import Samples

READ = (
    *("group_id", "trajectory_id", "task_text", "outcome", "step", "observation", "state", "admissible_actions"),
    *("action", "is_valid"),
)
"""Columns that are read: taking a trajectory's rows copies no others, of which those of tokens are long."""


def redacted_groups(samples: Samples, words: ActionWords, *columns: str) -> list[list[Samples]]:
    """The trajectories of each group as a skill may tell of them, with the `columns` of `samples` beside those of
    `READ`.

    `action` is without what answers say, without queries that name the answer of a success, and empty where the
    response broke the form and held none that can be told. `acted` says whether the world carried the action out: it
    does so for responses that broke the form too, and what they did is as good or as bad as if they had kept it.
    """
    read = Samples(samples.table.select([*READ, *columns]))
    groups: dict[str, list[Samples]] = {}
    for rows in read.by_trajectory().values():
        trajectory = read.select(rows)
        groups.setdefault(trajectory.group_ids[0], []).append(trajectory)
    redacted = []
    for group in groups.values():
        answers = _right_answers(group, words)
        redacted.append([_redact(trajectory, answers, words) for trajectory in group])
    return redacted


def worded(action: str, words: ActionWords) -> str:
    """The action in words: `<search>Tavi</search>` -> "search: Tavi"; an answer goes unsaid: `<answer>Tavi</answer>` ->
    "answer". An action without tags stays as it is."""
    tagged = _tagged(action, words)
    if not tagged:
        return action
    if words.answer_tag and f"<{words.answer_tag}>" in action:
        return words.answer_tag
    tag, argument = tagged
    return f"{tag}: {argument}" if argument else tag


def generalise(action: str, words: ActionWords) -> str:
    """The action without its entity numbers and its obvious instruments: "take apple 1 from desk 2" -> "take apple"."""
    if "[" in action or _tagged(action, words):  # with an argument, whose numbers mean something
        return worded(action, words)
    general = re.sub(r"(?<=[a-z]) \d{1,3}(?= |$)", "", action)  # longer numbers are years and prices, not entities
    return general.split(words.cut_before.get(verb_of(action), "\0"))[0]


def is_deed(action: str, words: ActionWords) -> bool:
    """Whether the action does something: is no move and no look."""
    return verb_of(action) not in (*words.passive_verbs, *words.moving_verbs)


def is_named(action: str, words: ActionWords) -> bool:
    """Whether the told action says what to do: is not empty, and no query that had to be left out."""
    tagged = _tagged(action, words)
    return bool(action.strip()) and (tagged is None or bool(tagged[1]) or tagged[0] == words.answer_tag)


def sub_steps(trajectory: Samples, words: ActionWords) -> list[str]:
    """Generalised actions that were carried out, without moves, looks and what must not be named."""
    done = carried_out(trajectory)
    return [generalise(action, words) for action in done if is_deed(action, words) and is_named(action, words)]


def carried_out(trajectory: Samples) -> list[str]:
    """The told actions that the world carried out."""
    return [*filter(None, itertools.compress(trajectory.texts("action"), trajectory.texts("acted")))]


def verb_of(action: str) -> str:
    return action.split(" ", 1)[0]


def _right_answers(group: Sequence[Samples], words: ActionWords) -> set[str]:
    """The words of the answers that won, those that the task itself names aside."""
    if words.answer_tag is None:
        return set()
    block = re.compile(f"<{words.answer_tag}>(.*?)</{words.answer_tag}>", re.DOTALL)
    answers = {
        (_compared(answer), _compared(trajectory.texts("task_text")[0]))
        for trajectory in group
        if trajectory.won[0]
        for action in trajectory.texts("action")
        for answer in block.findall(action)
    }
    return {answer for answer, task in answers if answer not in task}


def _redact(trajectory: Samples, right_answers: Collection[str], words: ActionWords) -> Samples:
    offered, is_valid = trajectory.texts("admissible_actions"), trajectory.texts("is_valid")
    seen, states = [*trajectory.texts("observation"), ""], [*trajectory.texts("state"), None]
    actions, acted = [], []
    for step, action in enumerate(trajectory.texts("action")):
        redacted = action if action in offered[step] else _without_answer(action, right_answers, words)
        is_on_offer = is_offered(redacted, offered[step])
        is_action = is_valid[step] or is_on_offer or _tagged(redacted, words) is not None
        actions.append(redacted if is_action else "")
        known = None not in states[step : step + 2]
        moved = known and states[step] != states[step + 1]
        # On offer, but where it led is where it was done: WebShop's click[search] on its first page, a wall of a maze.
        stayed = known and not moved and seen[step] == seen[step + 1] and verb_of(redacted) not in words.passive_verbs
        # A world may carry out more than it lists: WebShop searches from any page.
        refused = bool(offered[step]) and not is_on_offer and not moved
        acted.append(not (refused or stayed or seen[step + 1].strip().startswith(words.failed_observations)))
    return trajectory.with_columns(action=actions, acted=acted)


def _without_answer(action: str, right_answers: Collection[str], words: ActionWords) -> str:
    tagged = _tagged(action, words)
    if not tagged:
        return action
    tag, argument = tagged
    if words.answer_tag and f"<{words.answer_tag}>" in action:
        return f"<{words.answer_tag}></{words.answer_tag}>"
    names_answer = any(answer in _compared(argument) for answer in right_answers)
    return f"<{tag}></{tag}>" if names_answer else action


def _compared(text: str) -> str:
    """The words of a text between spaces, as answers are compared: lower case, no punctuation, no articles."""
    words = re.sub(r"[^\w\s]", "", text.lower()).split()
    return " ".join(["", *(word for word in words if word not in ("a", "an", "the")), ""])


def _tagged(action: str, words: ActionWords) -> tuple[str, str] | None:
    """The tag around the whole action, and the text in it."""
    if not words.tags:
        return None
    block = re.fullmatch(rf"<({'|'.join(words.tags)})>(.*)</\1>", action, re.DOTALL)
    return (block[1], block[2]) if block else None
