"""`opid rollout`: a policy plays a few evaluation tasks, and its transcripts are shown. Nothing is stored."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows import settings
from flows.cli.common import ConfigPath, Overrides, app, console

if TYPE_CHECKING:
    from opid_core.config import CampaignConfig
    from opid_core.rollout.episodes import Episode


@app.command()
def rollout(
    config_path: ConfigPath,
    episodes: Annotated[int, typer.Option(min=1, help="Play so many of the evaluation split's first tasks.")] = 2,
    policy: Annotated[
        str | None, typer.Option(help="HF folder, or model of the hub, to run; default: the campaign's newest policy.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Markdown file for the transcripts; must not exist.")] = None,
    overrides: Overrides = [],  # noqa: B006
) -> None:
    """Run a policy on a few tasks of the held-out panel and show its transcripts. Stores nothing.

    Example: [bold]opid rollout configs/quickstart.yaml --episodes 2 --policy configs/policies/alfworld_tiny[/]
    """
    from opid_core.config import load_config

    config = load_config(config_path, overrides)
    settings.apply(config.root)
    from flows import auto
    from flows.evaluate import policy_to_play
    from flows.output import check_new_file, write_file
    from flows.reports.formatting import say, show_markdown

    if out is not None:
        check_new_file(out)
    with policy_to_play(config, policy) as (folder, _):
        config = auto.decided(config, lambda text: say(console, text), folder=folder)
        played = play_episodes(config, folder, episodes)
    summary = _summary(played, config.evaluation.temperatures[0])
    text = "\n\n".join([*(transcript(episode) for episode in played), f"**{summary}**"]) + "\n"
    if out is None:
        show_markdown(console, text)
    else:
        write_file(out, text)
        say(console, f"{summary}\nTranscripts: {out}")


def play_episodes(config: CampaignConfig, policy_folder: Path, count: int) -> list[Episode]:
    """Play the first `count` tasks of the evaluation split with the HF folder's policy, at the first evaluation
    temperature and with the seeds of the evaluation.

    Raises ConfigError before anything runs for an unusable policy folder and too few tasks.
    """
    from flows.display import live_progress
    from flows.plan import check_policy_and_engine, first_prompt, key_of_split
    from opid_core.policies import load_tokenizer
    from opid_core.rollout.prompting import with_template_arguments
    from tasks.engines import play, start_engine
    from tasks.evaluate import panel_requests
    from tasks.progress import report

    temperature = config.evaluation.temperatures[0]
    with key_of_split("evaluation.split"):
        requests = panel_requests(config, count, temperature)
    check_policy_and_engine(policy_folder, trained=False)
    first_prompt(config, policy_folder)
    ended: list[Episode] = []

    def progress(episode: Episode) -> None:
        ended.append(episode)
        report(None, "rollout", len(ended), count)

    engine = start_engine(config, policy_folder, trained=False)
    try:
        with live_progress(console, first="start engine"):
            tokenizer = with_template_arguments(load_tokenizer(policy_folder), config.prompting.template_arguments)
            return play(config, engine, tokenizer, requests, temperature, progress)
    finally:
        engine.kill()


def transcript(episode: Episode) -> str:
    """An episode as Markdown: task; of each step the observation, the response, what was done; the outcome."""
    task = episode.request.task
    parts = [f"## {_code(task.task_id)} ({_code(task.task_type)})", _fenced(episode.task_text)]
    for number, turn in enumerate(episode.turns, start=1):
        validity = "valid" if turn.is_valid else "not valid"
        parts += [
            f"### Step {number}",
            "Observation:",
            _fenced(turn.observation),
            "Response:",
            _fenced(turn.response_text),
            f"Action: {_code(turn.action)}, {validity}, reward {turn.reward:g}",
        ]
    broken = f": {_code(episode.error)}" if episode.error else ""
    result = f"return {episode.episode_return:g}, {len(episode.turns)} steps, {episode.tokens} tokens"
    return "\n\n".join([*parts, f"Outcome: **{episode.outcome}**, {result}{broken}"])


def _summary(episodes: list[Episode], temperature: float) -> str:
    turns = [turn for episode in episodes for turn in episode.turns]
    won = sum(episode.outcome == "success" for episode in episodes)
    valid = sum(turn.is_valid for turn in turns)
    return (
        f"{won} of {len(episodes)} episodes won at temperature {temperature:g}; "
        f"{valid} of {len(turns)} responses valid; {len(turns) / len(episodes):.1f} steps an episode"
    )


def _ticks(text: str, fewest: int) -> str:
    """Backticks enough to enclose `text`."""
    return "`" * max(fewest, 1 + max(map(len, re.findall("`+", text)), default=0))


def _fenced(text: str) -> str:
    fence = _ticks(text, 3)
    return f"{fence}text\n{text}\n{fence}"


def _code(text: str) -> str:
    """`text` on one line, as it is."""
    line = " ".join(text.split())
    ticks = _ticks(line, 1)
    return f"{ticks} {line} {ticks}" if "`" in line else f"{ticks}{line}{ticks}" if line else "(none)"
