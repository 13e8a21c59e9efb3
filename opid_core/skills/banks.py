"""Static skills: texts by task type, written by hand or kept from an earlier campaign, in a JSON file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from envs.base import Task
from opid_core.errors import ConfigError
from opid_core.skills.replies import clean_skill


def load_skill_bank(path: str | Path) -> dict[str, str]:
    """The skills of a bank by task type: a mapping {task_type: text}, or a list of {"task_type": ..., "text": ...},
    whose texts of one type are joined in their order.

    Raises ConfigError that names the file and the field.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the skill bank: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{path}: the skill bank is not JSON text in UTF-8: {error}") from None
    bank: dict[str, str] = {}
    for where, task_type, text in _entries(data, path):
        if not isinstance(task_type, str) or not task_type.strip():
            raise ConfigError(f"{path}: {where}: expected the name of a task type, got {task_type!r}")
        skill = clean_skill(text) if isinstance(text, str) else ""
        if not skill:
            raise ConfigError(f"{path}: {where}: expected the text of a skill, got {text!r}")
        bank[task_type] = f"{bank[task_type]} {skill}" if task_type in bank else skill
    if not bank:
        raise ConfigError(f"{path}: the skill bank is empty")
    return bank


def skill_finder(path: str | Path) -> Callable[[Task], str]:
    """A function that finds a task's skill in a bank. It raises ConfigError for a task type that the bank has not."""
    bank = load_skill_bank(path)

    def skill_of(task: Task) -> str:
        if task.task_type not in bank:
            raise ConfigError(f"{path}: no skill for task type {task.task_type!r}; it has: {', '.join(sorted(bank))}")
        return bank[task.task_type]

    return skill_of


def _entries(data: Any, path: str | Path) -> list[tuple[str, Any, Any]]:
    """(where in the file, task type, text) of each skill."""
    if isinstance(data, dict):
        return [(f"skill of {task_type!r}", task_type, text) for task_type, text in data.items()]
    if not isinstance(data, list):
        raise ConfigError(f"{path}: expected a list of skills or a mapping of them, got {type(data).__name__}")
    entries = []
    for number, row in enumerate(data):
        if not isinstance(row, dict) or set(row) != {"task_type", "text"}:
            raise ConfigError(f"{path}: row {number}: expected an object with task_type and text, got {row!r}")
        entries.append((f"row {number}", row["task_type"], row["text"]))
    return entries
