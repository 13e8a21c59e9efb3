"""`opid tasks`: which tasks an environment has, by split and type, and what one of them looks like."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from envs.base import Environment, HasSplits, Task, make
from opid_core.errors import ConfigError


def show_tasks(
    environment_name: str,
    options: Mapping[str, Any],
    split: str | None,
    limit: int,
    task_id: str | None,
    console: Console,
) -> None:
    """Print the splits; or of one split the counts by type and the first `limit` tasks; or the start of one task.

    A count by type reads the type of every task of the split once; no task is kept, and nothing is reset but the task
    `task_id`. Raises ConfigError for an unknown environment, option, split or task.
    """
    if split is None and task_id is not None:
        raise ConfigError(f"--show {task_id}: name the split of the task with --split")
    environment = make(environment_name, options)
    if split is None:
        _show_splits(environment_name, environment, console)
        return
    tasks = environment.tasks(split)
    if task_id is None:
        _show_split(tasks, split, limit, console)
    else:
        _show_task(environment, find_task(tasks, split, task_id), console)


def find_task(tasks: Sequence[Task], split: str, task_id: str | None) -> Task:
    """The task called `task_id` (None: the first). Raises ConfigError, which shows how ids look, when there is none."""
    for task in tasks:
        if task_id in (None, task.task_id):
            return task
    shown = ", ".join(task.task_id for task in islice(tasks, 3))
    raise ConfigError(f"task: no task {task_id!r} among the {len(tasks)} of split {split}; its first are: {shown}")


def print_plain(console: Console, text: str) -> None:
    """Print a world's text as it is: its brackets are no markup."""
    console.print(text, markup=False, highlight=False)


def _show_splits(environment_name: str, environment: Environment, console: Console) -> None:
    if not isinstance(environment, HasSplits):
        raise ConfigError(f"environment {environment_name!r} does not list its splits: name one with --split")
    table = Table("split", "tasks")
    for split in environment.splits():
        table.add_row(split, str(len(environment.tasks(split))))
    console.print(table)


def _show_split(tasks: Sequence[Task], split: str, limit: int, console: Console) -> None:
    print_plain(console, f"{split}: {len(tasks)} tasks")
    types = Table("task type", "tasks")
    for task_type, count in sorted(Counter(task.task_type for task in tasks).items()):
        types.add_row(Text(task_type), str(count))
    console.print(types)
    if limit:
        first = Table("task", "task type")
        for task in islice(tasks, limit):
            first.add_row(Text(task.task_id, overflow="fold"), Text(task.task_type))
        console.print(first)


def _show_task(environment: Environment, task: Task, console: Console) -> None:
    observation = environment.reset(task)
    print_plain(console, f"{task.task_id} ({task.task_type})\n\n{environment.task_text}\n\n{observation}")
    if environment.admissible_actions:
        print_plain(console, "\n".join(["", "Admissible actions:", *environment.admissible_actions]))
