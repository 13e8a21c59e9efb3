"""`opid rollout`: a policy plays a few evaluation tasks, and its transcripts are shown. Nothing is stored."""

from __future__ import annotations

import re
from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown

from flows.display import live_progress
from flows.plan import check_new_file, check_policy_and_engine
from opid_core.config import CampaignConfig
from opid_core.rollout.episodes import Episode, run_episodes
from tasks import workers
from tasks.engine import RemoteEngine
from tasks.evaluate import panel_requests
from tasks.progress import report
from tasks.stage import environment_maker, evaluation_settings


def show_rollout(
    config: CampaignConfig, policy_folder: Path, episodes: int, console: Console, out: Path | None = None
) -> list[Episode]:
    """Play the first `episodes` tasks of the evaluation split with the HF folder's policy at the first evaluation
    temperature and the seeds of the evaluation; print the transcripts, or write them to `out` (Markdown).

    Raises ConfigError before anything runs for an unusable policy folder, a file that exists already and too few tasks.
    """
    if out is not None:
        check_new_file(out)
    make_environment = environment_maker(config)
    temperature = config.evaluation.temperatures[0]
    asked = panel_requests(config, episodes, temperature)
    check_policy_and_engine(policy_folder, trained=False)
    make_environment().reset(asked[0].task)
    finished: list[Episode] = []

    def progress(episode: Episode) -> None:
        finished.append(episode)
        report("start", "rollout", len(finished), episodes)

    engine = RemoteEngine(config, policy_folder)
    try:
        with live_progress(config, console):
            played = run_episodes(
                engine,
                workers.tokenizer_of(policy_folder),
                make_environment,
                asked,
                evaluation_settings(config, temperature),
                progress,
            )
    finally:
        engine.kill()
    summary = _summary(played, temperature)
    text = "\n\n".join([*(transcript(episode) for episode in played), f"**{summary}**"]) + "\n"
    if out is None:
        console.print(Markdown(text))
    else:
        out.write_text(text, encoding="utf-8")
        console.print(summary, f"Transcripts: {out}", sep="\n", markup=False, highlight=False, soft_wrap=True)
    return played


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
