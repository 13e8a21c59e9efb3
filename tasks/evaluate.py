"""Success of a policy on the fixed held-out panel -> `evaluations`."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

import pyarrow as pa
from prefect.assets import materialize

from envs.base import Task
from opid_core.config import CampaignConfig
from opid_core.errors import ConfigError
from opid_core.evaluation import by_split, by_temperature, success_metrics, table_success
from opid_core.rollout.engines.protocols import Engine
from opid_core.rollout.episodes import Episode, EpisodeRequest
from opid_core.rollout.tables import evaluations_table
from opid_core.seeds import derive
from tasks.engines import play
from tasks.episodes import environment_maker
from tasks.iteration import TASK, asset, stage
from tasks.progress import report
from tasks.results import evaluation_due


def panel(config: CampaignConfig, count: int, split: str | None = None) -> list[Task]:
    """The first `count` tasks of `split` (None: the config's). Raises ConfigError when there are fewer."""
    split = split or config.evaluation.split
    tasks = environment_maker(config)().tasks(split)
    if len(tasks) < count:
        raise ConfigError(f"evaluation: the split {split!r} has {len(tasks)} tasks, the panel needs {count}")
    return list(tasks[:count])


def panel_requests(
    config: CampaignConfig, count: int, temperature: float, repetition: int = 0, split: str | None = None
) -> list[EpisodeRequest]:
    """An episode for each of the panel's tasks. Seeds are the campaign's: every policy meets the same draws."""
    draws = ("evaluation", f"{temperature:g}", repetition)
    return [
        EpisodeRequest(task.task_id, task.task_id, task, derive(config.seed, *draws, index))
        for index, task in enumerate(panel(config, count, split))
    ]


def play_panel(
    config: CampaignConfig,
    engine: Engine,
    tokenizer,
    version: int,
    count: int,
    on_progress: Callable[[int, int, str], None] = lambda *progress: report(None, "evaluate", *progress),
) -> pa.Table:
    """Play the panel of each split at each temperature, as often as the config repeats it. `on_progress(done, total,
    note)`."""
    repetitions = config.evaluation.repetitions
    pairs = [*itertools.product(config.evaluation.splits, config.evaluation.temperatures)]
    total = count * repetitions * len(pairs)
    passes, done, tokens, began_s = [], 0, 0, time.monotonic()
    for split, temperature in pairs:
        finished: list[Episode] = []

        def on_episode(episode: Episode, finished=finished, title=f"temperature {temperature:g}, {split}") -> None:
            nonlocal done, tokens
            finished.append(episode)
            done, tokens = done + 1, tokens + episode.tokens
            won = sum(e.outcome == "success" for e in finished)
            speed = tokens / max(time.monotonic() - began_s, 1e-9)
            on_progress(done, total, f"{won} won, {speed:.0f} tokens/s, {title}")

        for repetition in range(repetitions):
            asked = panel_requests(config, count, temperature, repetition, split)
            episodes = play(config, engine, tokenizer, asked, temperature, on_episode)
            passes.append(evaluations_table(episodes, version, split, temperature, repetition))
    return pa.concat_tables(passes)


def evaluation_metrics(evaluations: pa.Table) -> dict[str, float]:
    """Success by temperature, with Wilson's interval and by task type, and the mean score where the environment gives
    one: of the first split as `evaluation/t<temperature>/...`, of a further one as
    `evaluation/<split>_t<temperature>/...`."""
    metrics = {}
    for number, (split, of_split) in enumerate(by_split(evaluations).items()):
        for temperature, part in by_temperature(of_split).items():
            name = f"evaluation/{f'{split}_' if number else ''}t{temperature:g}"
            success = table_success(part)
            metrics |= success_metrics(name, success)
            metrics |= {f"{name}/success/{task_type}": share for task_type, share in success.per_type.items()}
    return metrics


@materialize(asset("evaluations"), asset_deps=[asset("policy")], task_run_name="evaluate-{iteration}", **TASK)
def evaluate(campaign: str, iteration: int, attempt: int) -> None:
    """Evaluate the policy that the iteration made on the tasks of the panel that are due."""
    with stage("evaluate", campaign, iteration, attempt) as it:
        if it.is_reused:
            return
        count, version = evaluation_due(it.config, iteration), it.number
        with it.timed("seconds/evaluate_s"):
            engine, tokenizer = it.workers.engine(it.next_policy), it.workers.tokenizer(it.next_policy)
            it.progress(note=f"{count} tasks")
            evaluations = play_panel(it.config, engine, tokenizer, version, count, it.progress)
        it.metrics |= evaluation_metrics(evaluations)
        it.write("evaluations", evaluations, policy_version=version, panel_size=count)
