"""Success of a policy on the fixed held-out panel -> `evaluations`."""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa
from prefect.assets import materialize

from envs.base import Task
from opid_core.config import CampaignConfig
from opid_core.errors import ConfigError
from opid_core.evaluation import by_temperature, score_metrics, table_success
from opid_core.rollout.episodes import Engine, Episode, EpisodeRequest, run_episodes
from opid_core.rollout.tables import evaluations_table
from opid_core.seeds import derive
from tasks.episodes import environment_maker, evaluation_settings
from tasks.iteration import TASK, asset, stage
from tasks.progress import report


def panel(config: CampaignConfig, count: int) -> list[Task]:
    """The first `count` tasks of the evaluation split. Raises ConfigError when there are fewer."""
    tasks = environment_maker(config)().tasks(config.evaluation.split)
    if len(tasks) < count:
        raise ConfigError(
            f"evaluation: the split {config.evaluation.split!r} has {len(tasks)} tasks, the panel needs {count}"
        )
    return list(tasks[:count])


def panel_requests(config: CampaignConfig, count: int, temperature: float, repetition: int = 0) -> list[EpisodeRequest]:
    """An episode for each of the panel's tasks. Seeds are the campaign's: every policy meets the same draws."""
    draws = ("evaluation", f"{temperature:g}", repetition)
    return [
        EpisodeRequest(task.task_id, task.task_id, task, derive(config.seed, *draws, index))
        for index, task in enumerate(panel(config, count))
    ]


def evaluation_due(config: CampaignConfig, iteration: int) -> int:
    """How many tasks to evaluate after `iteration`: the final panel before training and after the last iteration, 0
    when it is not due."""
    if iteration in (0, config.iterations):
        return config.evaluation.final_tasks or config.evaluation.tasks
    every = config.evaluation.every
    return config.evaluation.tasks if every and iteration % every == 0 else 0


def play_panel(
    config: CampaignConfig,
    engine: Engine,
    tokenizer,
    version: int,
    count: int,
    on_progress: Callable[[int, int, str], None] = lambda *progress: report(0, "evaluate", *progress),
) -> pa.Table:
    """Play the panel at each temperature, as often as the config repeats it. `on_progress(done, total, note)`."""
    repetitions = config.evaluation.repetitions
    passes = []
    for temperature in config.evaluation.temperatures:
        settings = evaluation_settings(config, temperature)
        finished: list[Episode] = []

        def on_episode(episode: Episode, finished=finished, temperature=temperature) -> None:
            finished.append(episode)
            won = sum(e.outcome == "success" for e in finished)
            note = f"temperature {temperature:g}: {won / len(finished):.0%} won"
            on_progress(len(finished), count * repetitions, note)

        for repetition in range(repetitions):
            asked = panel_requests(config, count, temperature, repetition)
            episodes = run_episodes(engine, tokenizer, environment_maker(config), asked, settings, on_episode)
            passes.append(evaluations_table(episodes, version, temperature, repetition))
    return pa.concat_tables(passes)


def evaluation_metrics(evaluations: pa.Table) -> dict[str, float]:
    """Success by temperature, with Wilson's interval, and the mean score where the environment gives one."""
    metrics = {}
    for temperature, part in by_temperature(evaluations).items():
        success = table_success(part)
        name = f"evaluation/t{temperature:g}"
        metrics |= {
            f"{name}/success_micro": success.micro,
            f"{name}/success_macro": success.macro,
            f"{name}/success_low": success.low,
            f"{name}/success_high": success.high,
            **score_metrics(f"{name}/score", success.score),
        }
    return metrics


@materialize(asset("evaluations"), asset_deps=[asset("policy")], task_run_name="evaluate-{iteration}", **TASK)
def evaluate(campaign: str, iteration: int, attempt: int) -> None:
    """Evaluate the policy that the iteration made on the tasks of the panel that are due."""
    with stage("evaluate", campaign, iteration, attempt) as it:
        if it.is_reused:
            return
        count, version = evaluation_due(it.config, iteration), it.number
        it.progress(0, count)
        with it.timed("seconds/evaluate_s"):
            engine, tokenizer = it.workers.engine(it.next_policy), it.workers.tokenizer(it.next_policy)
            evaluations = play_panel(it.config, engine, tokenizer, version, count, it.progress)
        it.metrics |= evaluation_metrics(evaluations)
        it.write("evaluations", evaluations, policy_version=version, panel_size=count)
