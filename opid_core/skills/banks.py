"""Static skills: texts by task type, written by hand or kept from an earlier campaign, in a JSON file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from envs.base import Task
from opid_core.errors import ConfigError
from opid_core.local_paths import local_path
from opid_core.reading import read_text
from opid_core.samples import Samples
from opid_core.skills.replies import Analysis, clean_skill

GENERAL = "general"
"""In place of a task type: what is said of every task, before its type's own skill."""


def load_skill_bank(path: str | Path) -> dict[str, str]:
    """The skills of a bank, a JSON object of texts by task type. Raises ConfigError that names the file and the task
    type."""
    try:
        texts = TypeAdapter(dict[str, str]).validate_json(read_text(local_path(path, "skill_bank")), strict=True)
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the skill bank: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: cannot read the skill bank: not UTF-8 text ({error.reason})") from None
    except ValidationError as error:
        problem = error.errors()[0]
        at = "".join(f" of task type {part!r}" for part in problem["loc"])
        raise ConfigError(f"{path}: the skill bank{at}: {problem['msg']}; expected texts by task type") from None
    bank = {task_type: clean_skill(text) for task_type, text in texts.items()}
    if not bank:
        raise ConfigError(f"{path}: the skill bank is empty")
    if blank := [task_type for task_type, skill in bank.items() if not skill or not task_type.strip()]:
        raise ConfigError(
            f"{path}: the skill bank of task type {blank[0]!r}: expected a task type and the text of a skill"
        )
    return bank


def skill_finder(path: str | Path) -> Callable[[Task], str]:
    """A function that finds a task's skill in a bank: the general one, and that of its type. It raises ConfigError for
    a task type of which the bank says nothing."""
    bank = load_skill_bank(path)

    def skill_of(task: Task) -> str:
        skills = [bank[name] for name in (GENERAL, task.task_type) if name in bank]
        if not skills:
            raise ConfigError(f"{path}: no skill for task type {task.task_type!r}; it has: {', '.join(sorted(bank))}")
        return " ".join(skills)

    return skill_of


def from_bank(samples: Samples, path: str | Path) -> list[Analysis]:
    """The bank's skill as the episode skill of each trajectory that did not break, in the order of `samples`.

    Raises ConfigError as `skill_finder`.
    """
    skill_of = skill_finder(path)
    task_ids, task_types, outcomes = (samples.texts(name) for name in ("task_id", "task_type", "outcome"))
    return [
        Analysis(
            name, "", skill_of(Task(task_ids[rows[0]], task_types[rows[0]], None)), {}, analyzer="bank", attempts=0
        )
        for name, rows in samples.by_trajectory().items()
        if outcomes[rows[0]] != "broken"
    ]
