"""`opid play`: a person plays an episode in the terminal."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import typer
from rich.columns import Columns
from rich.console import Console
from rich.text import Text

from envs.base import Decision, Environment, HasExpert, make, result_of
from flows.cli.common import EnvironmentName, Options, app, console
from flows.cli.tasks import find_task, opening
from opid_core.errors import OpidError

_TAGS = {"search_qa": ("search", "answer")}
"""Environments whose actions are tags: `search: words` is typed for `<search>words</search>`."""
_BLANK = re.compile(r"<(your [^<>]*)>")
"""What an admissible action leaves to the player's own words, as in `search[<your query>]`."""


@dataclass
class _PlayedEpisode:
    """`past` holds (admissible actions, action, what it led to) of each step."""

    environment: Environment
    first_observation: str
    past: list[tuple[Sequence[str], str, str]] = field(default_factory=list)
    total_reward: float = 0.0


@app.command()
def play(
    environment_name: EnvironmentName,
    split: Annotated[str, typer.Option(help="Split of the task.")] = "train",
    task_id: Annotated[
        str | None, typer.Option("--task", metavar="TASK_ID", help="The task; default: the split's first.")
    ] = None,
    overrides: Options = [],  # noqa: B006
) -> None:
    """Play an episode yourself: actions by text or number, `hint` for the expert's next action, `quit` to end.

    Example: [bold]opid play alfworld --set generator.size=small --task train/000003[/]
    """
    from opid_core.config import parse_overrides

    play_episode(environment_name, parse_overrides(overrides), split, task_id, console)


def play_episode(
    environment_name: str,
    options: Mapping[str, Any],
    split: str,
    task_id: str | None,
    console: Console,
    read_line: Callable[[str], str] = input,
) -> None:
    """Play `task_id` (None: the first task of `split`) until it ends or `read_line` gives "quit" or EOFError.

    `read_line` gets the prompt and returns a line: an action, the number of an admissible action, "hint" or "quit".
    There is no limit of steps but the world's own. Rewards are the environment's, before any scaling by a campaign.
    Raises ConfigError for an unknown environment, option, split or task.
    """
    environment = make(environment_name, options)
    task = find_task(environment.tasks(split), split, task_id)
    tags = _TAGS.get(environment_name, ())
    episode = _PlayedEpisode(environment, result_of(environment.reset(task)))
    console.print(Text(opening(task, environment, episode.first_observation)))
    outcome = "ended by you"
    while (action := _next_action(episode, tags, console, read_line)) is not None:
        offered = tuple(environment.admissible_actions)
        result = result_of(environment.step(action))
        episode.past.append((offered, action, result.observation))
        episode.total_reward += result.reward
        console.print(Text(f"\nStep {len(episode.past)}: {action}"))
        if result.observation:
            console.print(Text(f"\n{result.observation}"))
        if result.won or result.done:
            outcome = "won" if result.won else "lost"
            break
    _show_end(episode, outcome, console)


def _next_action(
    episode: _PlayedEpisode, tags: Sequence[str], console: Console, read_line: Callable[[str], str]
) -> str | None:
    """Ask until there is an action; None to end the episode."""
    offered = episode.environment.admissible_actions
    _show_choices(episode.environment, tags, console)
    while True:
        try:
            line = read_line("> ").strip()
            if line == "quit":
                return None
            if line == "hint":
                console.print(Text(_hint(episode)))
                continue
            if line.isdecimal() and offered:
                if not 1 <= int(line) <= len(offered):
                    console.print(Text(f"Choose a number from 1 to {len(offered)}."))
                    continue
                line = _filled(offered[int(line) - 1], read_line)
        except EOFError:
            return None
        action = _parsed(episode.environment, _tagged(line, tags))
        if action is not None:
            return action
        if line:
            console.print(Text(f"Not understood. {_how_to_act(episode.environment, tags)}"))


def _show_choices(environment: Environment, tags: Sequence[str], console: Console) -> None:
    offered = environment.admissible_actions
    console.print()
    if offered:
        numbered = [Text(f"{number:>3} {action}") for number, action in enumerate(offered, start=1)]
        console.print(Columns(numbered, column_first=True, padding=(0, 3)))
    console.print(Text(_how_to_act(environment, tags)))


def _how_to_act(environment: Environment, tags: Sequence[str]) -> str:
    action = " or ".join(f"{tag}: WORDS" for tag in tags) or "an action"
    number = " or its number" if environment.admissible_actions else ""
    hint = "; hint: what the expert would do" if isinstance(environment, HasExpert) else ""
    return f"Type {action}{number}{hint}; quit: end the episode."


def _filled(action: str, read_line: Callable[[str], str]) -> str:
    """The action, with the player's words where it leaves room for them."""
    return _BLANK.sub(lambda blank: read_line(f"{blank[1]}> ").strip(), action)


def _tagged(line: str, tags: Sequence[str]) -> str:
    tag, colon, words = line.partition(":")
    tag = tag.strip().lower()
    return f"<{tag}>{words.strip()}</{tag}>" if colon and tag in tags else line


def _parsed(environment: Environment, line: str) -> str | None:
    """The action in the player's line, read as a policy's response is where the environment can word one; None if it
    holds none."""
    if not line:
        return None
    if not isinstance(environment, HasExpert):
        return line
    action, is_valid = environment.parse_action(environment.response_text(Decision(line, "")))
    return action if is_valid and action else None


def _hint(episode: _PlayedEpisode) -> str:
    """What an expert that saw the episode so far would do now."""
    environment = episode.environment
    if not isinstance(environment, HasExpert):
        return "No hint: this environment has no expert."
    try:
        expert = environment.expert(episode.first_observation)
        for offered, action, observation in episode.past:
            expert.decide(offered)  # as in a demonstration, where it decides at every step
            expert.observe(action, observation)
        decision = expert.decide(environment.admissible_actions)
    except OpidError as error:  # a task that the expert does not know can be played all the same
        return f"No hint: {error}"
    return f"Hint: {decision.action} ({decision.thought})"


def _show_end(episode: _PlayedEpisode, outcome: str, console: Console) -> None:
    steps = [f"{number:>3} {action}" for number, (_, action, _) in enumerate(episode.past, start=1)]
    summary = f"Episode {outcome}. Reward: {episode.total_reward:g}, steps: {len(steps)}"
    console.print(Text("\n".join(["", summary, *steps])))
