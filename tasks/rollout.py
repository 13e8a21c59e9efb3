"""Stage 1: groups of episodes with the current policy -> `steps`, `trajectories`."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence

from prefect.assets import materialize

from envs.base import HasForbiddenTexts, Task
from opid_core.config import CampaignConfig
from opid_core.errors import DataError
from opid_core.evaluation import rollout_metrics
from opid_core.rollout.episodes import Episode, EpisodeRequest
from opid_core.rollout.tables import steps_table, trajectories_table
from opid_core.seeds import derive
from tasks.engines import play
from tasks.episodes import environment_maker
from tasks.iteration import TASK, Iteration, asset, stage

AGAIN = "-again"
"""Ends the id of a group that stands in for one in which an environment broke."""


def sample_tasks(config: CampaignConfig, iteration: int) -> list[Task]:
    """The tasks of an iteration: the training split in an order shuffled anew for each pass over it, each task once a
    pass, as far as whole iterations go. A function of the campaign's seed and the iteration (from 1) alone."""
    tasks = environment_maker(config)().tasks(config.environment.train_split)
    count = config.rollout.tasks_per_iteration
    if len(tasks) < count:
        raise DataError(
            f"split {config.environment.train_split!r} has {len(tasks)} tasks, rollout.tasks_per_iteration is {count}"
        )
    iterations_a_pass = len(tasks) // count
    passes, place = divmod(iteration - 1, iterations_a_pass)
    order = random.Random(derive(config.seed, "task order", passes)).sample(range(len(tasks)), len(tasks))
    return [tasks[i] for i in order[place * count : (place + 1) * count]]


def forbidden_texts(config: CampaignConfig, iteration: int) -> dict[str, list[str]]:
    """What no skill of the iteration may tell, by task id; nothing where the environment does not say."""
    environment = environment_maker(config)()
    if not isinstance(environment, HasForbiddenTexts):
        return {}
    return {task.task_id: [*environment.forbidden_texts(task)] for task in sample_tasks(config, iteration)}


def requests(it: Iteration) -> list[EpisodeRequest]:
    """One request an episode: `group_size` members for each sampled task, each with a seed of its own."""
    return [
        request
        for group, chosen in enumerate(sample_tasks(it.config, it.number))
        for request in _members(it, f"{it.number:06d}-{group:04d}", chosen, "episode", group)
    ]


def requests_again(it: Iteration, episodes: Sequence[Episode]) -> list[EpisodeRequest]:
    """A new group, with seeds of its own, for each group of `episodes` in which an environment broke."""
    broken = {e.request.group_id: e.request.task for e in episodes if e.outcome == "broken"}
    return [
        request
        for group_id, chosen in broken.items()
        for request in _members(it, f"{group_id}{AGAIN}", chosen, "episode again", group_id)
    ]


def requests_for_ties(it: Iteration, episodes: Sequence[Episode], draw: int) -> list[EpisodeRequest]:
    """As many groups of newly drawn tasks as `episodes` lacks groups of mixed outcome; `draw` counts from 0.

    The tasks and their seeds are a function of the iteration's seed, the draw and how many are lacking.
    Source: ALGORITHM, section 8 (dapo).
    """
    config = it.config
    groups = len({episode.request.group_id for episode in episodes if not _is_again(episode)})
    lacking = config.rollout.tasks_per_iteration - len(mixed_groups(episodes))
    tasks = environment_maker(config)().tasks(config.environment.train_split)
    drawn = random.Random(derive(it.seed, "tasks for ties", draw)).sample(range(len(tasks)), max(lacking, 0))
    return [
        request
        for group, task in enumerate((tasks[i] for i in drawn), start=groups)
        for request in _members(it, f"{it.number:06d}-{group:04d}", task, "episode", group)
    ]


def mixed_groups(episodes: Sequence[Episode]) -> set[str]:
    """Groups in which some episodes succeeded, others did not, and none broke."""
    outcomes: dict[str, set[str]] = {}
    for episode in episodes:
        outcomes.setdefault(episode.request.group_id, set()).add(episode.outcome)
    return {
        group_id
        for group_id, found in outcomes.items()
        if "success" in found and len(found) > 1 and "broken" not in found
    }


def _is_again(episode: Episode) -> bool:
    return episode.request.group_id.endswith(AGAIN)


def _members(it: Iteration, group_id: str, task: Task, *seed_names: int | str) -> list[EpisodeRequest]:
    return [
        EpisodeRequest(f"{group_id}-{member:02d}", group_id, task, derive(it.seed, *seed_names, member))
        for member in range(it.config.rollout.group_size)
    ]


@materialize(
    asset("steps"), asset("trajectories"), asset_deps=[asset("policy")], task_run_name="rollout-{iteration}", **TASK
)
def rollout(campaign: str, iteration: int, attempt: int) -> None:
    """Play the iteration's episodes; every token the engine sampled is used, or the stage fails."""
    with stage("rollout", campaign, iteration, attempt) as it:
        if it.is_reused:
            return
        config, asked = it.config, requests(it)
        with it.timed("seconds/push_s"):
            engine = it.workers.engine(it.policy)
        it.progress(0, len(asked))
        tokenizer = it.workers.tokenizer(it.policy)
        finished: list[Episode] = []

        def on_episode(episode: Episode) -> None:
            finished.append(episode)
            won = sum(e.outcome == "success" for e in finished)
            tokens_per_s = (engine.tokens_generated - sampled_before) / (time.monotonic() - began_s)
            it.progress(len(finished), len(asked), f"{won} won, {tokens_per_s:.0f} tokens/s")

        def played(requests: Sequence[EpisodeRequest]) -> list[Episode]:
            return play(config, engine, tokenizer, requests, None, on_episode)

        sampled_before, began_s = engine.tokens_generated, time.monotonic()
        with it.timed("seconds/rollout_s"):
            episodes = played(asked)
            if again := requests_again(it, episodes):
                asked += again
                episodes += played(again)
            if config.method.filters_ties:
                it.metrics["rollout/groups_for_ties"] = 0.0
                for draw in range(config.method.further_draws):
                    more = requests_for_ties(it, episodes, draw)
                    asked += more
                    episodes += played(more)
                    it.metrics["rollout/groups_for_ties"] += len(more) / config.rollout.group_size
        sampled, used = engine.tokens_generated - sampled_before, sum(e.tokens for e in episodes)
        if sampled != used:
            raise DataError(f"rollout: {sampled} tokens generated but {used} used; report this as a bug")
        steps = steps_table(episodes, config.campaign, it.number, it.policy_version)
        trajectories = trajectories_table(episodes, config.campaign, it.number)
        it.metrics |= {**rollout_metrics(steps, trajectories), "tokens/rollout": used}
        both = {"steps": steps, "trajectories": trajectories}
        it.write("steps", steps, both, iteration=it.number, policy_version=it.policy_version)
        it.write("trajectories", trajectories, both, iteration=it.number, group_size=config.rollout.group_size)
