"""Commands about environments and this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from flows import settings
from flows.cli.common import ConfigPath, EnvironmentName, Options, Overrides, app, console
from opid_core.config import load_config, parse_overrides


@app.command("tasks")
def tasks_command(
    environment: EnvironmentName,
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
    from flows.cli.tasks import show_tasks

    show_tasks(environment, parse_overrides(overrides), split, limit, task_id, console)


@app.command("play")
def play_command(
    environment: EnvironmentName,
    split: Annotated[str, typer.Option(help="Split of the task.")] = "train",
    task_id: Annotated[
        str | None, typer.Option("--task", metavar="TASK_ID", help="The task; default: the split's first.")
    ] = None,
    overrides: Options = [],  # noqa: B006
) -> None:
    """Play an episode yourself: actions by text or number, `hint` for the expert's next action, `quit` to end.

    Example: [bold]opid play alfworld --set generator.size=small --task train/000003[/]
    """
    from flows.cli.play import play

    play(environment, parse_overrides(overrides), split, task_id, console)


@app.command("rollout")
def rollout_command(
    config_path: ConfigPath,
    episodes: Annotated[int, typer.Option(min=1, help="Play so many of the evaluation split's first tasks.")] = 2,
    policy: Annotated[
        Path | None, typer.Option(help="HF folder to run; default: the campaign's newest policy.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Markdown file for the transcripts; must not exist.")] = None,
    overrides: Overrides = [],  # noqa: B006
) -> None:
    """Run a policy on a few tasks of the held-out panel and show its transcripts. Stores nothing.

    Example: [bold]opid rollout configs/quickstart.yaml --episodes 2 --policy configs/policies/alfworld_tiny[/]
    """
    config = load_config(config_path, overrides)
    settings.apply(config.root)
    from flows.cli.rollout import show_rollout
    from flows.evaluate import newest_policy

    show_rollout(config, policy or newest_policy(config), episodes, console, out)


@app.command()
def doctor() -> None:
    """What works on this machine: packages, engine, learner, memory, disk; and what to do about what does not.

    Example: [bold]opid doctor[/]
    """
    from flows.cli.doctor import diagnose

    checks = diagnose(Path.cwd())
    table = Table("", "check", "found")
    for check in checks:
        table.add_row("[green]ok[/]" if check.ok else "[red]no[/]", check.name, check.detail)
    console.print(table)
    if not all(check.ok for check in checks):
        raise typer.Exit(1)
