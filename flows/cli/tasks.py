"""`opid tasks`: which tasks an environment has, by split and type, and what one of them looks like."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import islice
from typing import Annotated

import typer
from rich.table import Column, Table
from rich.text import Text

from envs.base import Environment, HasSplits, Task, make, result_of
from flows.cli.common import EnvironmentName, Options, app, console
from opid_core.errors import ConfigError


@app.command()
def tasks(
    environment_name: EnvironmentName,
    split: Annotated[
        str | None, typer.Option(help="Count and list the tasks of this split; default: count all splits.")
    ] = None,
    limit: Annotated[int, typer.Option(min=0, help="How many of the split's first tasks to list.")] = 10,
    task_id: Annotated[
        str | None, typer.Option("--show", metavar="TASK_ID", help="Show how this task of the split begins.")
    ] = None,
    overrides: Options = [],  # noqa: B006
) -> None:
    """Which tasks an environment has: its splits; of one split the counts by type and the first tasks; or one task.

    Example: [bold]opid tasks alfworld --split train --set generator.size=small --show train/000003[/]
    """
    from opid_core.config import parse_overrides

    if split is None and task_id is not None:
        raise ConfigError(f"--show {task_id}: name the split of the task with --split")
    environment = make(environment_name, parse_overrides(overrides))
    if split is None:
        _show_splits(environment_name, environment)
    elif task_id is None:
        _show_split(environment.tasks(split), split, limit)
    else:
        task = find_task(environment.tasks(split), split, task_id)
        console.print(Text(opening(task, environment, result_of(environment.reset(task)))))
        if environment.admissible_actions:
            console.print(Text("\n".join(["", "Admissible actions:", *environment.admissible_actions])))


def opening(task: Task, environment: Environment, observation: str) -> str:
    """How an episode of `task` begins, after the reset that gave `observation`."""
    return f"{task.task_id} ({task.task_type})\n\n{environment.task_text}\n\n{observation}"


def find_task(tasks: Sequence[Task], split: str, task_id: str | None) -> Task:
    """The task called `task_id` (None: the first). Raises ConfigError, which shows how ids look, for no task."""
    for task in tasks:
        if task_id in (None, task.task_id):
            return task
    shown = ", ".join(task.task_id for task in islice(tasks, 3))
    raise ConfigError(f"task: no task {task_id!r} among the {len(tasks)} of split {split}; its first are: {shown}")


def _show_splits(environment_name: str, environment: Environment) -> None:
    if not isinstance(environment, HasSplits):
        raise ConfigError(f"environment {environment_name!r} does not list its splits: name one with --split")
    table = Table("split", "tasks")
    for split in environment.splits():
        table.add_row(split, str(len(environment.tasks(split))))
    console.print(table)


def _show_split(tasks: Sequence[Task], split: str, limit: int) -> None:
    console.print(Text(f"{split}: {len(tasks)} tasks"))
    types = Table("task type", "tasks")
    for task_type, count in sorted(Counter(task.task_type for task in tasks).items()):
        types.add_row(Text(task_type), str(count))
    console.print(types)
    if limit:
        first = Table(Column("task", overflow="fold"), "task type")
        for task in islice(tasks, limit):
            first.add_row(Text(task.task_id), Text(task.task_type))
        console.print(first)
