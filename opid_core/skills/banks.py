"""Static skills: texts by task type, written by hand or kept from an earlier campaign, in a JSON file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from envs.base import Task
from opid_core.errors import ConfigError
from opid_core.local_paths import local_path
from opid_core.reading import read_text
from opid_core.skills.replies import clean_skill


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
    """A function that finds a task's skill in a bank. It raises ConfigError for a task type that the bank has not."""
    bank = load_skill_bank(path)

    def skill_of(task: Task) -> str:
        if task.task_type not in bank:
            raise ConfigError(f"{path}: no skill for task type {task.task_type!r}; it has: {', '.join(sorted(bank))}")
        return bank[task.task_type]

    return skill_of
