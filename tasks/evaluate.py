"""Success of a policy on the fixed held-out panel -> `evaluations`."""

from __future__ import annotations

from typing import Literal

import pyarrow as pa

from envs.base import Task
from infra.manifest import START
from opid_core.config import CampaignConfig
from opid_core.errors import ConfigError
from opid_core.evaluation import by_temperature, table_success
from opid_core.rollout.episodes import Engine, Episode, EpisodeRequest, run_episodes
from opid_core.rollout.tables import evaluations_table
from opid_core.seeds import derive
from tasks import workers
from tasks.context import Context, StageResult, merge
from tasks.progress import report
from tasks.stage import environment_maker, evaluation_settings, save, stage, timed


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


def play_panel(
    config: CampaignConfig,
    engine: Engine,
    tokenizer,
    version: int,
    count: int,
    iteration: int | Literal["start"] = START,
) -> pa.Table:
    """Play the panel at each temperature, as often as the config repeats it."""
    repetitions = config.evaluation.repetitions
    passes = []
    for temperature in config.evaluation.temperatures:
        settings = evaluation_settings(config, temperature)
        finished: list[Episode] = []

        def progress(episode: Episode, finished=finished, temperature=temperature) -> None:
            finished.append(episode)
            won = sum(e.outcome == "success" for e in finished)
            note = f"temperature {temperature:g}: {won / len(finished):.0%} won"
            report(iteration, "evaluate", len(finished), count * repetitions, note)

        for repetition in range(repetitions):
            asked = panel_requests(config, count, temperature, repetition)
            episodes = run_episodes(engine, tokenizer, environment_maker(config), asked, settings, progress)
            passes.append(evaluations_table(episodes, version, temperature, repetition))
    return pa.concat_tables(passes)


def evaluation_metrics(evaluations: pa.Table) -> dict[str, float]:
    """Success by temperature, with Wilson's interval."""
    metrics = {}
    for temperature, part in by_temperature(evaluations).items():
        success = table_success(part)
        name = f"evaluation/t{temperature:g}"
        metrics |= {
            f"{name}/success_micro": success.micro,
            f"{name}/success_macro": success.macro,
            f"{name}/success_low": success.low,
            f"{name}/success_high": success.high,
        }
    return metrics


@stage("evaluate")
def evaluate(context: Context, count: int) -> StageResult:
    """Evaluate `context.policy` on `count` tasks of the panel."""
    metrics: dict[str, float] = {}
    report(context.iteration, "evaluate", 0, count)
    with timed(metrics, "seconds/evaluate_s"):
        engine = workers.engine(context)
        tokenizer = workers.tokenizer(context.store, context.policy)
        evaluations = play_panel(context.config, engine, tokenizer, context.policy.version, count, context.iteration)
    saved = save(context, "evaluations", evaluations, {}, policy_version=context.policy.version, panel_size=count)
    return merge(saved, StageResult(metrics={**metrics, **evaluation_metrics(evaluations)}))
